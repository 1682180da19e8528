"""What several floors need and none owns: atomic files, module modes, keyed randomness, wording."""
