"""Two networks as a user of the pruner would bring them: ordinary modules that know nothing of it.

`params.yaml` names them by factory: `examples.srresnet:build` and `examples.denoiser:build`.
"""
