//! What a training run leaves behind, readable without Burn.
