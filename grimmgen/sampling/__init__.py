"""Generating text: sampling options, the sampler, beam search and the generator."""
