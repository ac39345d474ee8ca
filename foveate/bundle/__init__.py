"""The bundle on disk: its manifest, how it is read, written and given engines."""
