"""A recipe for a corpus of sentences in LibriSpeech's layout."""
