//! Training through Burn.

pub mod config;
pub mod data;
pub mod loss;
pub mod model;
pub mod ops;
pub mod optim;
pub mod start;
