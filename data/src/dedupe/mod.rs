//! Which documents say the same.
