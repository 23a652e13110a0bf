//! Files of tensors that are cut off, damaged or made to harm: typed errors, no panic, no hang, no huge
//! allocation.

use std::fs;

use diffusion_core::nn::TensorSource;
use diffusion_core::weights::TensorFile;
use diffusion_core::{DType, Device, Error, ErrorKind};
use diffusion_tests::{TestResult, golden_path};

/// One file of every container and form.
const FILES: [&str; 9] = [
    "zip.pt",
    "protocol4.pt",
    "legacy.pt",
    "parameters.pt",
    "embedding.pt",
    "float8.pt",
    "float8.stored.safetensors",
    "pickled.safetensors",
    "kinds.gguf",
];

fn read(name: &str) -> TestResult<Vec<u8>> {
    Ok(fs::read(golden_path("containers").join(name))?)
}

/// Names, shapes and values of all tensors, as text.
fn contents(file: &TensorFile) -> TestResult<String> {
    let mut text = String::new();
    for name in file.tensor_names() {
        let tensor = file.load(&name, DType::F64, &Device::Cpu)?;
        let values: Vec<f64> = tensor.flatten_all()?.to_vec1()?;
        text += &format!("{name} {:?} {values:?}\n", tensor.dims());
    }
    Ok(text)
}

fn open(bytes: &[u8]) -> Result<TensorFile, Error> {
    TensorFile::from_bytes("file", bytes.to_vec())
}

/// The error of bytes that must not open.
fn refusal(bytes: &[u8]) -> TestResult<Error> {
    match open(bytes) {
        Ok(_) => Err("it opened".into()),
        Err(error) => Ok(error),
    }
}

fn assert_refused(bytes: &[u8], kind: ErrorKind, part: &str) -> TestResult {
    let error = refusal(bytes)?;
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{part:?} not in: {error}");
    Ok(())
}

#[test]
fn cut_off_anywhere() -> TestResult {
    for name in FILES {
        let whole = read(name)?;
        let expected = contents(&open(&whole)?)?;
        for part in 0..64 {
            match open(&whole[..whole.len() * part / 64]) {
                Ok(file) => assert_eq!(contents(&file)?, expected, "{name} {part}/64"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Format, "{name}: {error}"),
            }
        }
    }
    Ok(())
}

/// Numbers by SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    /// Flips, sets, repeats or removes bytes.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(6) {
                0 | 1 => bytes[at] ^= 1 << self.below(8),
                2 => bytes[at] = self.below(256) as u8,
                3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                4 => {
                    let end = (at + 1 + self.below(8)).min(bytes.len());
                    bytes.drain(at..end);
                }
                _ => {
                    let end = (at + 1 + self.below(8)).min(bytes.len());
                    let copy = bytes[at..end].to_vec();
                    bytes.splice(at..at, copy);
                }
            }
        }
    }
}

#[test]
fn damaged_anywhere() -> TestResult {
    for (seed, name) in FILES.iter().enumerate() {
        let whole = read(name)?;
        let mut random = Random(seed as u64);
        for _ in 0..1500 {
            let mut bytes = whole.clone();
            random.damage(&mut bytes);
            match open(&bytes) {
                Ok(file) => {
                    contents(&file)?;
                }
                Err(error) => assert!(
                    matches!(error.kind(), ErrorKind::Format | ErrorKind::Unsupported),
                    "{name}: {error}"
                ),
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_no_checkpoint_is_named() -> TestResult {
    for (bytes, part) in [
        (&b""[..], "empty"),
        (b"<!DOCTYPE html><html><body>404", "web page"),
        (b"\n<html lang=\"en\"><head>", "web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:",
            "git lfs pull",
        ),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"{\"model\": 1}", "begins with"),
        (b"PK\x03\x04", "without its end"),
        (b"GGUF", "cut off"),
        (b"\x80\x02", "cut off"),
        (b"\x80\x02K\x01.", "magic number"),
    ] {
        assert_refused(bytes, ErrorKind::Format, part)?;
    }
    let missing = TensorFile::open("no/such/file").err().ok_or("it opened")?;
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    Ok(())
}

/// A legacy file whose object is the pickle `object`, without storages.
fn legacy(object: &[u8]) -> Vec<u8> {
    let magic: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let version = b"\x80\x02M\xe9\x03.";
    let machine = b"\x80\x02}.";
    let keys = b"\x80\x02].";
    [magic, version, machine, b"\x80\x02", object, keys].concat()
}

#[test]
fn nothing_is_executed() -> TestResult {
    for (object, name) in [
        (&b"cos\nsystem\n(X\x02\x00\x00\x00idtR."[..], "os.system"),
        (b"cposix\nsystem\n(X\x02\x00\x00\x00idtR.", "posix.system"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n.", "__builtin__.getattr"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (
            b"\x8c\x0asubprocess\x8c\x05Popen\x93)\x81.",
            "subprocess.Popen",
        ),
        (b"ctorch.nn.modules.conv\nConv2d\n)\x81.", "state_dict()"),
        (b"(S'id'\nios\nsystem\n.", "0x53"),
        (b"(ios\nsystem\n.", "0x69"),
        (b"\x82\x01.", "0x82"),
        (b"Ptoken\n.", "0x50"),
        (b"\xff.", "0xff"),
    ] {
        assert_refused(&legacy(object), ErrorKind::Unsupported, name)?;
    }
    Ok(())
}

#[test]
fn pickles_that_make_no_sense() -> TestResult {
    for (object, part) in [
        (&b"."[..], "takes a value"),
        (b"N0.", "takes a value"),
        (b"(t1.", "takes a value"),
        (b"K\x01(0.", "takes a value"),
        (b"K\x01(\x85.", "takes a value"),
        (b"NNR.", "no function"),
        (b"Na.", "takes a value"),
        (b"NNa.", "no list"),
        (b"NNNs.", "no dict"),
        (b"}(K\x01u.", "no dict"),
        (b"h\x07.", "never kept"),
        (b"K\x01}b.", "plain value"),
        (b"NQ.", "persistent id"),
        (b"X\xff\xff\xff\xff.", "cut off"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "cut off"),
        (b"\x8b\xff\xff\xff\xff.", "cut off"),
        (b"ccollections\n", "cut off"),
        (b"ctorch\nSize\n(K\x01tR.", "torch.Size"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n)R.", "_rebuild_tensor"),
    ] {
        assert_refused(&legacy(object), ErrorKind::Format, part)?;
    }
    Ok(())
}

/// `[x, x]` of `[x, x]` of ...: `depth` lists that hold the one before twice.
fn doubled(depth: u8, innermost: &[u8]) -> Vec<u8> {
    let mut object = [innermost, b"q\x00"].concat();
    for i in 1..=depth {
        object.extend([b']', b'(', b'h', i - 1, b'h', i - 1, b'e', b'q', i]);
    }
    [&object[..], b"."].concat()
}

#[test]
fn laughs_by_the_billion() -> TestResult {
    // 2^28 values by way of 28 lists: walking them ends early.
    assert_refused(
        &legacy(&doubled(28, b"N")),
        ErrorKind::Format,
        "more than its file",
    )?;
    // As many by copying: each dict is made of the one before, twice as long.
    let mut object = b"ccollections\nOrderedDict\nq\x00}(K\x01K\x02u".to_vec();
    object = [&object[..], &b"q\x01"[..]].concat();
    for _ in 0..64 {
        // state {"_parameters": dict} on the dict itself: its entries are doubled.
        object.extend(b"}(X\x0b\x00\x00\x00_parametersh\x01ub");
    }
    object.push(b'.');
    assert_refused(&legacy(&object), ErrorKind::Format, "more than its file")
}

#[test]
fn values_nested_deeply_or_in_themselves() -> TestResult {
    let deep = [&[b']'; 20_000][..], &[b'a'; 19_999], b"."].concat();
    assert_refused(&legacy(&deep), ErrorKind::Format, "nested more than")?;
    let tuples = [&b")"[..], &[0x85; 20_000], b"."].concat();
    assert_refused(&legacy(&tuples), ErrorKind::Format, "nested more than")?;
    assert_refused(
        &legacy(b"]q\x00h\x00a."),
        ErrorKind::Format,
        "in themselves",
    )?;
    let marks = [&[b'('; 100_000][..], b"N."].concat();
    open(&legacy(&marks))?;
    Ok(())
}

/// A tensor on storage "0" of `len` floats, as an object of a legacy file.
fn tensor(len: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let storage =
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu";
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &storage[..],
        len,
        b"NtQ",
        offset,
        shape,
        strides,
        b"\x89}tR.",
    ]
    .concat()
}

/// A legacy file of one tensor and the 4 floats of its storage.
fn one_tensor(len: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let mut file = legacy(&tensor(len, offset, shape, strides));
    file.truncate(file.len() - b"\x80\x02].".len());
    file.extend(b"\x80\x02](X\x01\x00\x00\x000e.");
    file.extend(4u64.to_le_bytes());
    file.extend([1f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()));
    file
}

#[test]
fn tensors_that_leave_their_storage() -> TestResult {
    let good = open(&one_tensor(
        b"K\x04",
        b"K\x00",
        b"K\x02K\x02\x86",
        b"K\x01K\x02\x86",
    ))?;
    let transposed = good.load("tensor", DType::F32, &Device::Cpu)?;
    assert_eq!(transposed.to_vec2::<f32>()?, [[1.0, 3.0], [2.0, 4.0]]);

    const MAX: &[u8] = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    for (len, offset, shape, strides, part) in [
        (
            &b"K\x05"[..],
            &b"K\x00"[..],
            &b"K\x04\x85"[..],
            &b"K\x01\x85"[..],
            "16 bytes",
        ),
        (MAX, b"K\x00", b"K\x04\x85", b"K\x01\x85", "16 bytes"),
        (
            b"K\x04",
            b"K\x01",
            b"K\x04\x85",
            b"K\x01\x85",
            "needs 16 bytes",
        ),
        (
            b"K\x04",
            b"K\x05",
            b"K\x00\x85",
            b"K\x01\x85",
            "outside of its storage",
        ),
        (
            b"K\x04",
            MAX,
            b"K\x01\x85",
            b"K\x01\x85",
            "outside of its storage",
        ),
        (
            b"K\x04",
            b"J\xff\xff\xff\xff",
            b"K\x04\x85",
            b"K\x01\x85",
            "found Int(-1)",
        ),
        (
            b"K\x04",
            b"K\x00",
            b"J\xff\xff\xff\xff\x85",
            b"K\x01\x85",
            "found Int(-1)",
        ),
        (
            b"K\x04",
            b"K\x00",
            b"K\x02\x85",
            b"K\x04\x85",
            "leaves its storage",
        ),
        (
            b"K\x04",
            b"K\x00",
            b"K\x02\x85",
            b"J\xff\xff\xff\xff\x85",
            "found Int(-1)",
        ),
        (b"K\x04", b"K\x00", b"K\x02\x85", MAX, "_rebuild_tensor"),
        (
            b"K\x04",
            b"K\x00",
            b"K\x02K\x02\x86",
            b"K\x01\x85",
            "with strides",
        ),
        (
            b"K\x04",
            b"K\x00",
            b"J\x00\x00\x00\x40\x85",
            b"K\x00\x85",
            "contiguous() copy",
        ),
    ] {
        assert_refused(
            &one_tensor(len, offset, shape, strides),
            ErrorKind::Format,
            part,
        )?;
    }
    // Dimensions whose product is too large, beside an empty one.
    let huge = [b"(K\x00", MAX, MAX, b"t"].concat();
    let file = one_tensor(b"K\x04", b"K\x00", &huge, b"K\x01K\x01K\x01\x87");
    assert_refused(&file, ErrorKind::Format, "does not come in the shape")
}

/// Where `part` begins in `bytes` for the `n`-th time.
fn find(bytes: &[u8], part: &[u8], n: usize) -> TestResult<usize> {
    let mut places = bytes
        .windows(part.len())
        .enumerate()
        .filter(|(_, window)| *window == part);
    Ok(places.nth(n).ok_or("not found")?.0)
}

const DIRECTORY_ENTRY: &[u8] = b"PK\x01\x02";

#[test]
fn archives_that_lie() -> TestResult {
    let whole = read("zip.pt")?;
    let first = find(&whole, DIRECTORY_ENTRY, 0)?;
    let second = find(&whole, DIRECTORY_ENTRY, 1)?;
    let edited = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        edit(&mut bytes);
        bytes
    };
    let method = edited(&|b| b[first + 10] = 8);
    assert_refused(&method, ErrorKind::Unsupported, "zip -0")?;
    let encrypted = edited(&|b| b[first + 8] |= 1);
    assert_refused(&encrypted, ErrorKind::Unsupported, "encrypted")?;
    let lengths = edited(&|b| b[first + 20] ^= 1);
    assert_refused(&lengths, ErrorKind::Format, "two lengths")?;
    let overlapping = edited(&|b| {
        for field in [first + 20, first + 24] {
            b[field + 1] += 4;
        }
    });
    assert_refused(&overlapping, ErrorKind::Format, "overlap")?;
    let outside = edited(&|b| {
        for field in [first + 20, first + 24] {
            b[field + 2] = 0xff;
        }
    });
    assert_refused(&outside, ErrorKind::Format, "outside of the file")?;
    let misplaced = edited(&|b| b[first + 42] ^= 1);
    assert_eq!(refusal(&misplaced)?.kind(), ErrorKind::Format);
    // Two entries of the directory for one entry of the archive.
    let length = second - first;
    let twice = edited(&|b| {
        let copy = b[first..second].to_vec();
        b.splice(second..second + length.min(copy.len()), copy);
    });
    assert_eq!(refusal(&twice)?.kind(), ErrorKind::Format);

    let order = find(&whole, b"little", 0)?;
    let big = edited(&|b| b[order..order + 6].copy_from_slice(b"bigbig"));
    assert_refused(&big, ErrorKind::Unsupported, "big-endian")?;
    let pickle = find(&whole, b"data.pkl", 0)?;
    let renamed = find(&whole, b"data.pkl", 1)?;
    let nameless = edited(&|b| (b[pickle], b[renamed]) = (b'x', b'x'));
    assert_refused(&nameless, ErrorKind::Format, "without data.pkl")
}

#[test]
fn gguf_that_lies() -> TestResult {
    let whole = read("kinds.gguf")?;
    let edited = |at: usize, bytes: &[u8]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        copy
    };
    assert_refused(
        &edited(4, &[1, 0, 0, 0]),
        ErrorKind::Unsupported,
        "version 1",
    )?;
    assert_refused(
        &edited(4, &[0, 0, 0, 3]),
        ErrorKind::Unsupported,
        "big-endian",
    )?;
    assert_refused(
        &edited(8, &[0xff; 8]),
        ErrorKind::Format,
        "tensors, at most",
    )?;
    assert_refused(&edited(16, &[0xff; 8]), ErrorKind::Format, "")?;
    assert_refused(&edited(24, &[0xff; 8]), ErrorKind::Format, "cut off")?;
    let name = find(&whole, b"dims", 0)? + 4;
    assert_refused(
        &edited(name, &[5, 0, 0, 0]),
        ErrorKind::Format,
        "5 dimensions",
    )?;
    assert_refused(&edited(name + 4, &[0xff; 8]), ErrorKind::Format, "dims")?;
    assert_refused(
        &edited(name + 36, &[16, 0, 0, 0]),
        ErrorKind::Unsupported,
        "type 16",
    )?;
    assert_refused(&edited(name + 40, &[1]), ErrorKind::Format, "not aligned")?;
    assert_refused(&edited(name + 40, &[0xe0; 8]), ErrorKind::Format, "dims")?;
    Ok(())
}

#[test]
fn a_safetensors_header_has_a_bound() -> TestResult {
    let mut file = vec![b' '; 100 << 20];
    let len = file.len() as u64 - 8;
    file[..8].copy_from_slice(&len.to_le_bytes());
    file[8] = b'{';
    assert_refused(&file, ErrorKind::Format, "header of")
}

#[test]
fn captions_in_a_header_are_no_harm() -> TestResult {
    // Trainers write all captions of a data set into the file of a LoRA.
    for text in ["x".repeat(20 << 20), "\\\"".repeat(10 << 20)] {
        let header = format!(
            r#"{{"__metadata__":{{"ss_tag_frequency":"{text}"}},"a":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#
        );
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length, header.as_bytes(), &[0; 4]].concat();
        let file = TensorFile::from_bytes("captions.safetensors", file)?;
        assert_eq!(file.tensor_names(), ["a"]);
    }
    // Many short texts are.
    let texts: Vec<String> = (0..600_000)
        .map(|i| format!(r#""key {i}":"text""#))
        .collect();
    let header = format!(r#"{{"__metadata__":{{{}}}}}"#, texts.join(","));
    let length = (header.len() as u64).to_le_bytes();
    let file = [&length, header.as_bytes()].concat();
    assert_refused(&file, ErrorKind::Format, "header of")
}
