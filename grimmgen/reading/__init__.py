"""Files as users have them: which belong to a corpus, and the text that is in them."""
