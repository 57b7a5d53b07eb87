//! Files that put a model somewhere: [`aws`] (a Lambda function), [`container`] (an image and what runs it), [`site`] (the page with its model
//! on a static host). Nothing here speaks to a cloud; what is written is for the clouds' own tools, and for a person to read first.
//!
//! A target is a function from its options to [`bundle::Bundle`], a list of files, which is written as a whole or not at all.
#![forbid(unsafe_code)]

pub mod aws;
pub mod bundle;
pub mod container;
pub mod cost;
pub mod site;
