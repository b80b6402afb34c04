"""Conversations to tokens: templates, turns, masks, tokenizers."""
