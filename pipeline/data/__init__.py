"""From a folder of photographs to training patches and evaluation pairs."""
