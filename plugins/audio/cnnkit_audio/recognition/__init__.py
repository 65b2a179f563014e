"""What was said, from the recordings of any number of microphones: the job of the networks that recognise speech."""
