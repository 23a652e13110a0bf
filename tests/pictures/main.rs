//! Pictures out of files: every mode as Pillow reads it, and typed errors for what is damaged.

mod damage;
mod modes;
