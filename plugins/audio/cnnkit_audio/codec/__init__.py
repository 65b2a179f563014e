"""Sound as few bits, and back: the job of the networks that code."""
