//! What is mended in a document, and which documents are left out.
