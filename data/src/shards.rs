//! The files that training reads: tokens, mask, segments and their manifest.
