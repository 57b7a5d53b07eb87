//! Documents to rows of at most `context` tokens.
