//! The browser runtime (under construction).
