//! A byte-level BPE tokenizer of one's own.
