//! The classes and functions that a pickle may name.

use super::value::Span;
use crate::weights::Element;

/// What a name stands for here. None of them is ever imported or called.
#[derive(Debug, Clone, Copy)]
pub(super) enum Global {
    /// A dict in one of its guises.
    Dict,
    /// `torch.Size`, a tuple.
    Size,
    /// A function that makes a tensor of a storage; the number of its version.
    Tensor(u8),
    /// A function that returns its first argument, as far as numbers go.
    Parameter,
    /// `_rebuild_from_type_v2`: a function, a class, and the function's arguments.
    FromType,
    /// A class of storages; `None` for bytes that a tensor gives a meaning.
    Storage(Option<Element>),
    /// A torch dtype.
    Element(Element),
    /// `_codecs.encode`, by which Python 3 writes bytes in protocol 2.
    Encode,
    /// numpy's function that makes a scalar.
    NumpyScalar,
    /// `numpy.dtype`.
    NumpyType,
    /// Something that is known to be of no interest.
    Opaque(Span),
}

/// What `module.name` stands for, or `None` if it is not known; `span` is where it is written.
pub(super) fn lookup(module: &str, name: &str, span: Span) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict" | "defaultdict" | "Counter")
        | ("builtins" | "__builtin__", "dict")
        | ("torch.nn.modules.container", "ParameterDict") => Global::Dict,
        ("torch", "Size") => Global::Size,
        ("torch._utils", "_rebuild_tensor") => Global::Tensor(1),
        ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor(2),
        ("torch._utils", "_rebuild_tensor_v3") => Global::Tensor(3),
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
            Global::Parameter
        }
        ("torch._tensor", "_rebuild_from_type_v2") => Global::FromType,
        ("torch.storage", "UntypedStorage" | "_UntypedStorage") | ("torch", "UntypedStorage") => {
            Global::Storage(None)
        }
        ("_codecs", "encode") => Global::Encode,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::NumpyScalar,
        ("numpy", "dtype") => Global::NumpyType,
        ("torch" | "torch.cuda", name) if storage(name).is_some() => Global::Storage(storage(name)),
        ("torch", name) if dtype(name).is_some() => Global::Element(dtype(name)?),
        _ if is_opaque(module, name) => Global::Opaque(span),
        _ => return None,
    })
}

fn storage(name: &str) -> Option<Element> {
    Some(match name.strip_suffix("Storage")? {
        "Double" => Element::F64,
        "Float" => Element::F32,
        "Half" => Element::F16,
        "BFloat16" => Element::Bf16,
        "Long" => Element::I64,
        "Int" => Element::I32,
        "Short" => Element::I16,
        "Char" => Element::I8,
        "Byte" => Element::U8,
        "Bool" => Element::Bool,
        _ => return None,
    })
}

fn dtype(name: &str) -> Option<Element> {
    Some(match name {
        "float64" => Element::F64,
        "float32" => Element::F32,
        "float16" => Element::F16,
        "bfloat16" => Element::Bf16,
        "float8_e4m3fn" => Element::F8E4m3,
        "float8_e5m2" => Element::F8E5m2,
        "int64" => Element::I64,
        "int32" => Element::I32,
        "int16" => Element::I16,
        "int8" => Element::I8,
        "uint64" => Element::U64,
        "uint32" => Element::U32,
        "uint16" => Element::U16,
        "uint8" => Element::U8,
        "bool" => Element::Bool,
        _ => return None,
    })
}

/// What trainers leave in checkpoints beside the weights: their callbacks, settings, paths and dates.
fn is_opaque(module: &str, name: &str) -> bool {
    let package = module.split('.').next().unwrap_or_default();
    match module {
        "builtins" | "__builtin__" => matches!(
            name,
            "set"
                | "frozenset"
                | "list"
                | "tuple"
                | "int"
                | "long"
                | "float"
                | "bool"
                | "str"
                | "unicode"
                | "bytes"
                | "bytearray"
                | "complex"
                | "slice"
                | "range"
                | "object"
        ),
        "numpy" => matches!(
            name,
            "ndarray" | "float64" | "float32" | "int64" | "int32" | "bool_"
        ),
        "numpy.core.multiarray" | "numpy._core.multiarray" => name == "_reconstruct",
        "torch" => matches!(name, "device" | "Tensor" | "strided"),
        "torch.nn.parameter" => name == "Parameter",
        "torch.torch_version" => name == "TorchVersion",
        "torch.serialization" => name == "_get_layout",
        "collections" => name == "deque",
        "argparse" => name == "Namespace",
        "datetime" => matches!(name, "datetime" | "date" | "timedelta" | "timezone"),
        "pathlib" => matches!(
            name,
            "Path" | "PosixPath" | "WindowsPath" | "PurePosixPath" | "PureWindowsPath"
        ),
        "typing" => matches!(name, "Any" | "Optional" | "Union"),
        _ => matches!(
            package,
            "pytorch_lightning" | "lightning" | "lightning_fabric" | "omegaconf"
        ),
    }
}
