//! Which part of the data a document belongs to.
