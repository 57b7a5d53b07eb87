//! Training through Burn.
use burn as _;
