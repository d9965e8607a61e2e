"""Batch copies between ICAv2 projects: `flip` and `resolve` plan, `engine` copies, `verify` proves, `report` tells."""
