"""How fast a bundle answers, and what keeping fewer visual tokens saves."""
