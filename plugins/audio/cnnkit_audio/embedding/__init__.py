"""The embedding job: vectors of clips whose directions tell speakers apart, and decisions by their cosine."""
