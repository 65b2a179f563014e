"""The networks of the medseg plugin: one file per paper."""
