//! Cross-target tests.
