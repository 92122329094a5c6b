"""Probes: small heads that are trained on the kept features of a frozen backbone."""
