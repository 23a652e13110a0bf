//! The one error type, and the kinds behind C status codes and Python exceptions.

use std::fmt;
use std::path::{Path, PathBuf};

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely: the table that C status codes and Python exceptions follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is out of range or does not fit the model.
    InvalidArgument,
    /// A path, file or component does not exist.
    NotFound,
    /// Reading or writing failed.
    Io,
    /// A file is damaged or not what its name says.
    Format,
    /// The tensors of a checkpoint do not fit its configuration.
    Weights,
    /// A model or option that this version does not know.
    Unsupported,
    /// The run would not fit into memory.
    OutOfMemory,
    /// The caller's progress function stopped the run.
    Cancelled,
    /// The tensor layer or the device failed, or its numbers overflowed.
    Device,
    /// A user's own scheduler or callback failed.
    Custom,
}

/// Everything that can go wrong. Each message says what was expected, what was found and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument is out of range or does not fit the model.
    #[error("{name}: expected {expected}, found {found}")]
    InvalidArgument {
        /// The argument's name, as the request spells it.
        name: &'static str,
        /// What would have been accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A path or component does not exist.
    #[error("{}: not found; {hint}", path.display())]
    NotFound {
        /// The path that was looked for.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// Reading or writing failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file is damaged or not what its name says.
    #[error("{}: {reason}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// The tensors of a checkpoint do not fit its configuration.
    #[error("{0}")]
    Weights(Box<WeightsError>),
    /// A model or option that this version does not know.
    #[error("{what} is not supported; {hint}")]
    Unsupported {
        /// The option and its value.
        what: String,
        /// What is supported, or what to do instead.
        hint: String,
    },
    /// The run would not fit into memory.
    #[error(
        "this run needs about {} MiB and {} MiB are free; {hint}",
        needed >> 20,
        available >> 20
    )]
    OutOfMemory {
        /// Estimated bytes at the peak.
        needed: u64,
        /// Bytes that the system can give.
        available: u64,
        /// What to do about it.
        hint: String,
    },
    /// The caller's progress function stopped the run.
    #[error("cancelled after step {step} of {num_steps}")]
    Cancelled {
        /// Steps that were finished.
        step: usize,
        /// Steps that were asked for.
        num_steps: usize,
    },
    /// A picture came out with values that are not numbers.
    #[error("the decoded picture is not finite: {hint}")]
    NotFinite {
        /// What to do about it.
        hint: &'static str,
    },
    /// The tensor layer or the device failed.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// A user's own scheduler, denoiser or callback failed.
    #[error("{0}")]
    Custom(Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// The coarse kind of this error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InvalidArgument { .. } => ErrorKind::InvalidArgument,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Io { .. } => ErrorKind::Io,
            Self::Format { .. } => ErrorKind::Format,
            Self::Weights(_) => ErrorKind::Weights,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::OutOfMemory { .. } => ErrorKind::OutOfMemory,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
            Self::NotFinite { .. } | Self::Tensor(_) => ErrorKind::Device,
            Self::Custom(_) => ErrorKind::Custom,
        }
    }

    /// Wraps an error of the user's own, for schedulers and denoisers outside this crate.
    pub fn custom(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Custom(error.into())
    }

    pub(crate) fn argument(
        name: &'static str,
        expected: impl Into<String>,
        found: impl fmt::Display,
    ) -> Self {
        Self::InvalidArgument {
            name,
            expected: expected.into(),
            found: found.to_string(),
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    /// A file that could not be opened; `hint` says what to do if it is not there.
    pub(crate) fn open(path: &Path, source: std::io::Error, hint: &str) -> Self {
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::NotFound {
                path: path.to_owned(),
                hint: hint.into(),
            },
            _ => Self::io(path, source),
        }
    }

    pub(crate) fn format(path: &Path, reason: impl fmt::Display) -> Self {
        Self::Format {
            path: path.to_owned(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn unsupported(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unsupported {
            what: what.into(),
            hint: hint.into(),
        }
    }
}

/// Every tensor of one component that does not fit, in one report.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightsError {
    /// Where the tensors came from: a file or component name.
    pub source_name: String,
    /// Tensors that the configuration asks for and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Tensors of the checkpoint that the configuration has no place for.
    pub unexpected: Vec<String>,
    /// Tensors of another shape than the configuration asks for.
    pub misshapen: Vec<ShapeMismatch>,
}

/// One tensor of the wrong shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeMismatch {
    /// The tensor's name.
    pub name: String,
    /// The shape that the configuration asks for.
    pub expected: Vec<usize>,
    /// The shape in the checkpoint.
    pub found: Vec<usize>,
}

impl WeightsError {
    pub(crate) fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl fmt::Display for WeightsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: the tensors do not fit the configuration",
            self.source_name
        )?;
        if !self.missing.is_empty() {
            write!(f, "; missing: {}", self.missing.join(", "))?;
        }
        if !self.unexpected.is_empty() {
            write!(f, "; unexpected: {}", self.unexpected.join(", "))?;
        }
        for ShapeMismatch {
            name,
            expected,
            found,
        } in &self.misshapen
        {
            write!(f, "; {name}: expected {expected:?}, found {found:?}")?;
        }
        write!(
            f,
            "; check that config.json and the weights are of the same model"
        )
    }
}
