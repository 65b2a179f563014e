"""Simulators: sounds, voices, rooms and devices whose physics is known, so that what is heard in them is known too."""
