"""Hydra's way to sweetspot's launcher; Hydra finds plugins under `hydra_plugins` alone."""
