"""Configuration: mesh.toml and the environment, read into a frozen ``Manifest`` or a list of faults.."""
