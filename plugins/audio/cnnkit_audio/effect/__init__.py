"""Devices that change sound, learnt from what goes in and what comes out."""
