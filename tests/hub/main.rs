//! Models from a hub: a small server on this machine plays it.
