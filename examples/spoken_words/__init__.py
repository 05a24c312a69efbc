"""Three small recognisers of recorded words, and a study of them."""
