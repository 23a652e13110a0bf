//! The names and shapes of the published IP-Adapters and image encoders, without their weights: each tensor has
//! a place and each parameter a tensor.

use std::collections::BTreeMap;
use std::fs::File;

use diffusion_core::model::{
    ClipVisionConfig, CrossAttention, ImageEncoder, ImageProjection, IpAdapter, IpAdapterConfig,
};
use diffusion_core::nn::TensorSource;
use diffusion_core::{DType, Device, Error, Result, Tensor};
use diffusion_tests::{TestResult, golden_path};
use flate2::read::GzDecoder;
use serde::Deserialize;
use serde_json::Value;

type Shapes = BTreeMap<String, Vec<usize>>;

#[derive(Deserialize)]
struct Published {
    encoders: BTreeMap<String, Encoder>,
    cross_attentions: BTreeMap<String, Vec<(String, usize, usize)>>,
    adapters: BTreeMap<String, Adapter>,
}

#[derive(Deserialize)]
struct Encoder {
    config: Value,
    tensors: Shapes,
}

#[derive(Deserialize)]
struct Adapter {
    unet: String,
    encoder: String,
    tensors: Shapes,
}

fn published() -> TestResult<Published> {
    let file = File::open(golden_path("ip_adapter_names.json.gz"))?;
    Ok(serde_json::from_reader(GzDecoder::new(file))?)
}

/// Tensors of one number each, whatever their shape.
struct Hollow(Shapes);

impl TensorSource for Hollow {
    fn name(&self) -> String {
        "hollow".into()
    }

    fn tensor_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = self.shape(name).ok_or_else(|| Error::custom("no tensor"))?;
        Ok(Tensor::zeros((), dtype, device)?.broadcast_as(shape)?)
    }
}

fn layers(published: &Published, unet: &str) -> Vec<CrossAttention> {
    let layers = published.cross_attentions[unet].iter();
    layers
        .map(|(path, inner, context)| CrossAttention {
            path: path.clone(),
            inner: *inner,
            context: *context,
        })
        .collect()
}

fn open(tensors: &Shapes, layers: &[CrossAttention]) -> Result<IpAdapter> {
    IpAdapter::new(&Hollow(tensors.clone()), layers, DType::F32, &Device::Cpu)
}

#[test]
fn every_tensor_of_the_published_adapters_has_a_place() -> TestResult {
    let published = published()?;
    let plus = |hidden: usize| ImageProjection::Resampler {
        tokens: 16,
        hidden,
        inner: hidden,
        feed_forward: 4 * hidden,
        layers: 4,
    };
    let linear = ImageProjection::Linear { tokens: 4 };
    let expected = [
        ("ip-adapter_sd15", linear),
        ("ip-adapter-plus_sd15", plus(768)),
        (
            "ip-adapter-full-face_sd15",
            ImageProjection::EachPatch { inner: 1280 },
        ),
        ("ip-adapter_sdxl", linear),
        ("ip-adapter_sdxl_vit-h", linear),
        ("ip-adapter-plus_sdxl_vit-h", plus(1280)),
    ];
    assert_eq!(published.adapters.len(), expected.len());
    for (name, projection) in expected {
        let adapter = &published.adapters[name];
        let layers = layers(&published, &adapter.unet);
        // What is missing, misshapen or left over would be an error.
        let opened = open(&adapter.tensors, &layers).map_err(|e| format!("{name}: {e}"))?;
        let config = opened.config();
        assert_eq!(config.projection, projection, "{name}");
        assert_eq!(config.unused, [""; 0], "{name}");
        for (encoder, files) in &published.encoders {
            let path = std::path::Path::new("config.json");
            let fits = config.check_encoder(&ClipVisionConfig::from_json(path, &files.config)?);
            assert_eq!(
                fits.is_ok(),
                *encoder == adapter.encoder,
                "{name} {encoder}"
            );
        }
    }
    Ok(())
}

#[test]
fn each_tensor_counts() -> TestResult {
    let published = published()?;
    let adapter = &published.adapters["ip-adapter-plus_sdxl_vit-h"];
    let layers = layers(&published, &adapter.unet);
    for name in adapter.tensors.keys() {
        let mut fewer = adapter.tensors.clone();
        fewer.remove(name);
        assert!(open(&fewer, &layers).is_err(), "without {name}");
        let mut other = adapter.tensors.clone();
        other.insert(name.clone(), vec![7, 9]);
        assert!(open(&other, &layers).is_err(), "{name} of another shape");
    }
    let mut more = adapter.tensors.clone();
    more.insert("ip_adapter.1.to_q_ip.weight".into(), vec![1]);
    assert!(open(&more, &layers).is_err());
    // What is beside the two parts does no harm, and is named.
    let mut beside = adapter.tensors.clone();
    beside.insert("global_step".into(), vec![]);
    assert_eq!(open(&beside, &layers)?.config().unused, ["global_step"]);
    Ok(())
}

#[test]
fn adapters_of_other_families_are_refused_with_the_reason() -> TestResult {
    let published = published()?;
    let (sd15, sdxl) = (layers(&published, "sd15"), layers(&published, "sdxl_base"));
    let refused = |name: &str, layers: &[CrossAttention]| -> TestResult<String> {
        match open(&published.adapters[name].tensors, layers) {
            Err(error @ Error::InvalidArgument { .. }) => Ok(error.to_string()),
            other => Err(format!("{name}: {:?}", other.err()).into()),
        }
    };
    let message = refused("ip-adapter_sdxl", &sd15)?;
    assert!(message.contains("2048 channels (SDXL)"), "{message}");
    assert!(message.contains("768 channels (Stable Diffusion 1.x)"));
    refused("ip-adapter-plus_sd15", &sdxl)?;
    // A distillation has the right width and fewer layers.
    let message = refused("ip-adapter_sd15", &sd15[..9])?;
    assert!(message.contains("9 cross-attention layers"), "{message}");
    Ok(())
}

#[test]
fn every_tensor_of_the_image_encoders_has_a_place() -> TestResult {
    for (name, encoder) in published()?.encoders {
        let path = std::path::Path::new("config.json");
        let mut tensors = encoder.tensors.clone();
        // A buffer that the published file has and transformers 5 does not write.
        tensors.insert("vision_model.embeddings.position_ids".into(), vec![1, 257]);
        let source = Hollow(tensors);
        let by_shapes = ClipVisionConfig::from_tensors(&source)?;
        let config = ClipVisionConfig::from_json(path, &encoder.config)?;
        assert_eq!(format!("{by_shapes:?}"), format!("{config:?}"), "{name}");
        ImageEncoder::new(config, &source, DType::F32, &Device::Cpu)
            .map_err(|e| format!("{name}: {e}"))?;
    }
    Ok(())
}

#[test]
fn descriptions_name_kind_family_and_encoder() -> TestResult {
    let published = published()?;
    let describe = |name: &str| -> TestResult<String> {
        let source = Hollow(published.adapters[name].tensors.clone());
        Ok(IpAdapterConfig::from_tensors(&source)?.to_string())
    };
    assert_eq!(
        describe("ip-adapter-plus_sdxl_vit-h")?,
        "IP-Adapter Plus, 16 tokens a picture of 2048 channels (SDXL), 70 cross-attention layers; takes an image \
         encoder whose patches have 1280 channels, as those of CLIP ViT-H (models/image_encoder)"
    );
    assert_eq!(
        describe("ip-adapter_sdxl")?,
        "IP-Adapter, 4 tokens a picture of 2048 channels (SDXL), 70 cross-attention layers; takes an image encoder \
         whose projection has 1280 channels, as those of CLIP ViT-bigG (sdxl_models/image_encoder)"
    );
    Ok(())
}
