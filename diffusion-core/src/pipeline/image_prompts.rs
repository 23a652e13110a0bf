//! Pictures as prompts: IP-Adapters, and the image encoder by which they see.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Tensor};
use image::RgbImage;
use serde_json::{Value, json};

use super::provenance::{hash_picture, hash_tensor};
use super::{GenerateRequest, ImageEncoderFiles, Pipeline};
use crate::denoise::ImagePrompt;
use crate::error::{Error, Result};
use crate::media;
use crate::model::{ImageEncoder, IpAdapter, IpAdapterScale};
use crate::weights::TensorFile;

/// What a pipeline sees pictures with.
#[derive(Debug, Clone, Default)]
pub(super) struct Sight {
    adapters: Vec<Arc<IpAdapter>>,
    encoder: Option<ImageEncoder>,
}

/// Pictures for one of a pipeline's IP-Adapters, and how strongly they count.
///
/// ```
/// use diffusion_core::pipeline::IpAdapterImage;
/// use diffusion_core::{GenerateRequest, RgbImage};
///
/// let cat = RgbImage::new(64, 64);
/// let request = GenerateRequest::txt2img("in the snow")
///     .ip_adapter_image(IpAdapterImage::from(cat).scale(0.6));
/// ```
#[derive(Clone)]
pub struct IpAdapterImage {
    content: Content,
    scale: IpAdapterScale,
}

#[derive(Clone)]
enum Content {
    Pictures(Vec<RgbImage>),
    Embeds(ImageEmbeds),
}

/// What the image encoder says about pictures, and about none.
#[derive(Debug, Clone)]
pub struct ImageEmbeds {
    /// `(pictures, projection_dim)`, or `(pictures, 1 + patches, hidden)` for adapters that
    /// [take patches](crate::model::ImageProjection::takes_patches).
    pub embeds: Tensor,
    /// Of the same shape; guidance above 1 needs it. Default for adapters that do not take patches: zeros.
    pub negative_embeds: Option<Tensor>,
}

impl From<RgbImage> for IpAdapterImage {
    fn from(picture: RgbImage) -> Self {
        Self::pictures(vec![picture])
    }
}

impl IpAdapterImage {
    /// Several pictures, of which the adapter sees all.
    pub fn pictures(pictures: Vec<RgbImage>) -> Self {
        Self {
            content: Content::Pictures(pictures),
            scale: IpAdapterScale::default(),
        }
    }

    /// Pictures that were encoded before, by [`Pipeline::encode_image`].
    pub fn embeds(embeds: ImageEmbeds) -> Self {
        Self {
            content: Content::Embeds(embeds),
            scale: IpAdapterScale::default(),
        }
    }

    /// How strongly the pictures count: 0 not at all. Default: 1.
    pub fn scale(mut self, scale: impl Into<IpAdapterScale>) -> Self {
        self.scale = scale.into();
        self
    }

    /// What a picture's file says of it.
    pub(super) fn note(&self) -> Result<Value> {
        let Self { content, scale } = self;
        Ok(match content {
            Content::Pictures(pictures) => {
                let pictures: Vec<Value> = pictures.iter().map(hash_picture).collect();
                json!({"pictures": pictures, "scale": scale})
            }
            Content::Embeds(embeds) => {
                json!({"embeds": hash_tensor(&embeds.embeds)?, "scale": scale})
            }
        })
    }
}

impl fmt::Debug for IpAdapterImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content: Vec<_> = match &self.content {
            Content::Pictures(pictures) => pictures
                .iter()
                .map(|picture| format!("{} x {}", picture.width(), picture.height()))
                .collect(),
            Content::Embeds(embeds) => vec![format!("embeds {:?}", embeds.embeds.dims())],
        };
        f.debug_struct("IpAdapterImage")
            .field("content", &content)
            .field("scale", &self.scale)
            .finish()
    }
}

impl Pipeline {
    /// Adds an IP-Adapter: an original file, safetensors or pickle. Requests then bring pictures for it. Where the
    /// pipeline has no image encoder, the one that lies beside the file is read: `image_encoder`, or
    /// `../models/image_encoder`, as they were published.
    ///
    /// # Errors
    /// As [`TensorFile::open`], [`IpAdapter::new`] and [`load_image_encoder`](Self::load_image_encoder), and
    /// [`Error::InvalidArgument`] if the adapter is made for another image encoder than the pipeline's.
    pub fn add_ip_adapter(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let layers = self.unet.cross_attentions();
        let file = TensorFile::open(path)?;
        let adapter = IpAdapter::new(&file, &layers, self.weights_dtype(), &self.device)?;
        match &self.sight.encoder {
            Some(encoder) => adapter.config().check_encoder(encoder.config())?,
            None => {
                if let Some(files) = encoder_beside(path, &adapter)? {
                    let encoder = files.load(self.weights_dtype(), &self.device)?;
                    self.sight.encoder = Some(encoder);
                }
            }
        }
        self.sight.adapters.push(Arc::new(adapter));
        Ok(())
    }

    /// Takes all IP-Adapters out; the image encoder stays.
    pub fn clear_ip_adapters(&mut self) {
        self.sight.adapters.clear();
    }

    /// The IP-Adapters, in the order in which requests bring pictures for them.
    pub fn ip_adapters(&self) -> impl ExactSizeIterator<Item = &IpAdapter> {
        self.sight.adapters.iter().map(AsRef::as_ref)
    }

    /// Reads CLIP's vision model, in place of the one that was there: a folder with `config.json` and weights, or
    /// the weights of a published model alone.
    ///
    /// # Errors
    /// As [`ImageEncoderFiles::open`] and [`ImageEncoder::new`], and [`Error::InvalidArgument`] if an adapter of
    /// the pipeline is made for another.
    pub fn load_image_encoder(&mut self, path: impl AsRef<Path>) -> Result<()> {
        let files = ImageEncoderFiles::open(path)?;
        for adapter in &self.sight.adapters {
            adapter.config().check_encoder(&files.config)?;
        }
        self.sight.encoder = Some(files.load(self.weights_dtype(), &self.device)?);
        Ok(())
    }

    /// The image encoder, if there is one.
    pub fn image_encoder(&self) -> Option<&ImageEncoder> {
        self.sight.encoder.as_ref()
    }

    /// Encodes pictures for one of the [`ip_adapters`](Self::ip_adapters), for several requests. `with_negative`
    /// also encodes what guidance above 1 compares them with.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there is no such adapter, no image encoder or no picture, or if a picture has
    /// no pixels.
    pub fn encode_image(
        &self,
        adapter: usize,
        pictures: &[RgbImage],
        with_negative: bool,
    ) -> Result<ImageEmbeds> {
        let adapters = &self.sight.adapters;
        let adapter = adapters.get(adapter).ok_or_else(|| {
            let expected = format!("the number of one of {} IP-Adapters", adapters.len());
            Error::argument("adapter", expected, adapter)
        })?;
        self.encode_for(adapter, pictures, with_negative)
    }

    /// What [`encode_prompt`](Self::encode_prompt) makes of a request's pictures, for callers that have a
    /// conditioning of their own otherwise. Guidance above 1 needs `with_negative`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the request has pictures, and not for each of the IP-Adapters; otherwise as
    /// [`encode_image`](Self::encode_image).
    pub fn encode_image_prompts(
        &self,
        request: &GenerateRequest,
        with_negative: bool,
    ) -> Result<Vec<ImagePrompt>> {
        self.check_image_prompts(request)?;
        let given = request.ip_adapter_images.iter();
        given
            .zip(&self.sight.adapters)
            .map(|(image, adapter)| {
                let embeds = match &image.content {
                    Content::Pictures(pictures) => {
                        self.encode_for(adapter, pictures, with_negative)?
                    }
                    Content::Embeds(embeds) => self.given_embeds(adapter, embeds, with_negative)?,
                };
                let negative = embeds.negative_embeds.as_ref();
                Ok(ImagePrompt {
                    tokens: adapter.tokens(&embeds.embeds)?,
                    negative_tokens: negative.map(|n| adapter.tokens(n)).transpose()?,
                    adapter: adapter.clone(),
                    scale: image.scale.clone(),
                })
            })
            .collect()
    }

    /// A request brings pictures for each of the adapters, or for none of them.
    pub(super) fn check_image_prompts(&self, request: &GenerateRequest) -> Result<()> {
        let (found, expected) = (request.ip_adapter_images.len(), self.sight.adapters.len());
        if found > 0 && found != expected {
            let expected = match expected {
                0 => "none, since the pipeline has no IP-Adapter (builder: ip_adapter)".into(),
                _ => format!("none, or pictures for each of {expected} IP-Adapters"),
            };
            return Err(Error::argument("ip_adapter_image", expected, found));
        }
        for image in &request.ip_adapter_images {
            image.scale.check()?;
        }
        Ok(())
    }

    fn encode_for(
        &self,
        adapter: &IpAdapter,
        pictures: &[RgbImage],
        with_negative: bool,
    ) -> Result<ImageEmbeds> {
        let encoder = self.sight.encoder.as_ref().ok_or_else(|| {
            let expected = "an image encoder (builder: image_encoder), or embeddings";
            Error::argument("ip_adapter_image", expected, "pictures alone")
        })?;
        if pictures.is_empty() {
            return Err(Error::argument("ip_adapter_image", "a picture", "none"));
        }
        let takes_patches = adapter.config().projection.takes_patches();
        let encode = |pixels: &Tensor| {
            let encoding = encoder.forward(pixels)?;
            Ok::<_, Error>(match takes_patches {
                true => encoding.penultimate_hidden_state,
                false => encoding.image_embeds,
            })
        };
        let side = encoder.config().image_size;
        // One by one, so that memory does not grow with their number.
        let each = pictures
            .iter()
            .map(|picture| encode(&media::to_clip(picture, side, &self.device)?))
            .collect::<Result<Vec<_>>>()?;
        let embeds = Tensor::cat(&each, 0)?;
        let negative_embeds = match (with_negative, takes_patches) {
            (false, _) => None,
            (true, false) => Some(embeds.zeros_like()?),
            // As in training: a picture of the mean colour, which normalised is zeros.
            (true, true) => {
                let mean = Tensor::zeros((1, 3, side, side), DType::F32, &self.device)?;
                let one = encode(&mean)?;
                Some(one.broadcast_as(embeds.shape())?.contiguous()?)
            }
        };
        Ok(ImageEmbeds {
            embeds,
            negative_embeds,
        })
    }

    /// Embeddings of the caller's, checked, with the negative ones that follow from the adapter's kind.
    fn given_embeds(
        &self,
        adapter: &IpAdapter,
        given: &ImageEmbeds,
        with_negative: bool,
    ) -> Result<ImageEmbeds> {
        let checked = |tensor: &Tensor| {
            let tensor = tensor.to_device(&self.device)?.to_dtype(DType::F32)?;
            let sum = tensor.sum_all()?.to_scalar::<f32>()?;
            match sum.is_finite() {
                true => Ok(tensor),
                false => Err(Error::argument("image embeds", "finite values", sum)),
            }
        };
        let embeds = checked(&given.embeds)?;
        let negative_embeds = match &given.negative_embeds {
            _ if !with_negative => None,
            Some(negative) => Some(checked(negative)?),
            None if !adapter.config().projection.takes_patches() => Some(embeds.zeros_like()?),
            None => {
                let expected = "negative_embeds, for guidance above 1";
                return Err(Error::argument("image embeds", expected, "none"));
            }
        };
        Ok(ImageEmbeds {
            embeds,
            negative_embeds,
        })
    }

    fn weights_dtype(&self) -> DType {
        self.unet.weights().dtype()
    }
}

/// The image encoder that was published with an adapter's file, if it is there and fits.
fn encoder_beside(file: &Path, adapter: &IpAdapter) -> Result<Option<ImageEncoderFiles>> {
    let folder = file.parent().map(Path::to_owned).unwrap_or_default();
    let places: [PathBuf; 2] = [
        folder.join("image_encoder"),
        folder.join("../models/image_encoder"),
    ];
    for place in places.iter().filter(|place| place.is_dir()) {
        let files = ImageEncoderFiles::open(place)?;
        if adapter.config().check_encoder(&files.config).is_ok() {
            return Ok(Some(files));
        }
    }
    Ok(None)
}
