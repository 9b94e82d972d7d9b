"""Whether fewer MACs are less time: seconds and memory of whole networks on this machine (network_times.py), and of
each convolution, with the likely cause where a layer gets less faster than its MACs let expect (layer_times.py)."""
