//! Pictures that a run shall follow: ControlNets and T2I-Adapters.

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use serde_json::{Value, json};

use super::provenance::{hash_picture, hash_tensor};
use super::{GenerateRequest, Pipeline};
use crate::denoise::{Controls, FeatureControl, NetControl, Window};
use crate::device::check_weights_dtype;
use crate::error::{Error, Result};
use crate::media::{self, Resampling};
use crate::model::{ControlNet, ControlNetConfig, T2iAdapter, T2iAdapterConfig};
use crate::nn::{Activation, upsample_nearest};
use crate::weights::{Checkpoint, ComponentKind};

/// Far beyond any use, and far below what f32 holds.
const MAX_SCALE: f64 = 1e6;

/// A network that reads a [`Control`]'s picture.
#[derive(Debug, Clone)]
pub enum ControlModel {
    /// It runs beside the UNet in every step.
    ControlNet(Arc<ControlNet>),
    /// It runs once.
    T2iAdapter(Arc<T2iAdapter>),
}

/// The picture of a [`Control`], prepared as its network was trained: edges, depth, a pose.
#[derive(Debug, Clone)]
pub enum ControlImage {
    /// A picture of any size, resized as diffusers does.
    Rgb(RgbImage),
    /// `(1 or num_images, channels, height, width)` in `[0, 1]`, resized by repeating or leaving out pixels.
    Tensor(Tensor),
}

impl ControlModel {
    fn device(&self) -> &Device {
        match self {
            Self::ControlNet(net) => net.weights().device(),
            Self::T2iAdapter(adapter) => adapter.weights().device(),
        }
    }

    /// Channels of the picture that it reads.
    fn channels(&self) -> usize {
        match self {
            Self::ControlNet(net) => net.config().conditioning_channels,
            Self::T2iAdapter(adapter) => adapter.config().in_channels,
        }
    }
}

impl From<Arc<ControlNet>> for ControlModel {
    fn from(net: Arc<ControlNet>) -> Self {
        Self::ControlNet(net)
    }
}

impl From<ControlNet> for ControlModel {
    fn from(net: ControlNet) -> Self {
        Arc::new(net).into()
    }
}

impl From<Arc<T2iAdapter>> for ControlModel {
    fn from(adapter: Arc<T2iAdapter>) -> Self {
        Self::T2iAdapter(adapter)
    }
}

impl From<T2iAdapter> for ControlModel {
    fn from(adapter: T2iAdapter) -> Self {
        Arc::new(adapter).into()
    }
}

impl From<RgbImage> for ControlImage {
    fn from(picture: RgbImage) -> Self {
        Self::Rgb(picture)
    }
}

impl From<Tensor> for ControlImage {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

/// A picture that a run shall follow, and how. A request may have several, which add up; values are checked
/// when the run starts.
///
/// # Example
/// ```no_run
/// use std::sync::Arc;
/// use diffusion_core::{Control, ControlNet, DType, Device, GenerateRequest, RgbImage};
///
/// # fn f(edges: RgbImage) -> diffusion_core::Result<()> {
/// let canny = Arc::new(ControlNet::open("control_v11p_sd15_canny.pth", DType::F32, &Device::Cpu)?);
/// let request = GenerateRequest::txt2img("a house in the hills")
///     .control(Control::new(canny, edges).scale(0.8).end(0.6));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Control {
    pub(super) model: ControlModel,
    image: ControlImage,
    scale: f64,
    window: Window,
    guess_mode: bool,
}

impl Control {
    /// Follows a picture at full strength in all steps. The network is opened once and shared between requests.
    pub fn new(model: impl Into<ControlModel>, image: impl Into<ControlImage>) -> Self {
        Self {
            model: model.into(),
            image: image.into(),
            scale: 1.0,
            window: Window::ALL,
            guess_mode: false,
        }
    }

    /// The strength, finite; diffusers' `controlnet_conditioning_scale` and `adapter_conditioning_scale`.
    /// Default: 1.
    pub fn scale(mut self, scale: f64) -> Self {
        self.scale = scale;
        self
    }

    /// The share of the steps, from 0 to 1, that are done without it at first. A step counts as one whatever
    /// its solver asks of the model within it. Default: 0.
    pub fn start(mut self, start: f64) -> Self {
        self.window.start = start;
        self
    }

    /// The share of the steps, from `start` to 1, behind which it is left out; diffusers'
    /// `control_guidance_end` and `adapter_conditioning_factor`. Default: 1.
    pub fn end(mut self, end: f64) -> Self {
        self.window.end = end;
        self
    }

    /// Whether a ControlNet is followed without a prompt's help: what it adds is weaker at high resolution, and
    /// the answer without the prompt is left alone. Guidance scales of 3 to 5 suit. Default: no.
    pub fn guess_mode(mut self, guess_mode: bool) -> Self {
        self.guess_mode = guess_mode;
        self
    }

    /// What a picture's file says of it.
    pub(super) fn note(&self) -> Result<Value> {
        let Self {
            model,
            image,
            scale,
            window,
            guess_mode,
        } = self;
        let network = match model {
            ControlModel::ControlNet(_) => "ControlNet",
            ControlModel::T2iAdapter(_) => "T2I-Adapter",
        };
        let image = match image {
            ControlImage::Rgb(picture) => hash_picture(picture),
            ControlImage::Tensor(tensor) => hash_tensor(tensor)?,
        };
        Ok(json!({
            "network": network,
            "image": image,
            "scale": scale,
            "start": window.start,
            "end": window.end,
            "guess_mode": guess_mode,
        }))
    }

    fn check(&self) -> Result<()> {
        let Window { start, end } = self.window;
        if !(-MAX_SCALE..=MAX_SCALE).contains(&self.scale) {
            let expected = format!("a number from -{MAX_SCALE} to {MAX_SCALE}");
            return Err(Error::argument("control scale", expected, self.scale));
        }
        if !(0.0..=1.0).contains(&start) {
            return Err(Error::argument("control start", "0 to 1", start));
        }
        if !(start..=1.0).contains(&end) {
            let expected = format!("from the control's start, {start}, to 1");
            return Err(Error::argument("control end", expected, end));
        }
        if self.guess_mode && matches!(self.model, ControlModel::T2iAdapter(_)) {
            let hint = "only ControlNets have it";
            return Err(Error::unsupported("guess mode of a T2I-Adapter", hint));
        }
        Ok(())
    }
}

impl ControlImage {
    /// Checks that there are as many pictures and channels as the run and its network take.
    fn check(&self, num_images: usize, channels: usize) -> Result<()> {
        let (batch, height, width, found) = match self {
            Self::Rgb(picture) => {
                let (width, height) = picture.dimensions();
                (
                    1,
                    height as usize,
                    width as usize,
                    format!("{width} x {height} pixels"),
                )
            }
            Self::Tensor(tensor) => match *tensor.dims() {
                [batch, _, height, width] => (batch, height, width, format!("{:?}", tensor.dims())),
                _ => (0, 0, 0, format!("{:?}", tensor.dims())),
            },
        };
        if height == 0 || width == 0 || (batch != 1 && batch != num_images) {
            let expected = format!(
                "a picture of at least one pixel, or a tensor of shape (1 or {num_images}, channels, height, width)"
            );
            return Err(Error::argument("control image", expected, found));
        }
        let found = match self {
            // Colours become brightness where that is wanted.
            Self::Rgb(_) if channels == 1 => 1,
            Self::Rgb(_) => 3,
            Self::Tensor(tensor) => tensor.dim(1)?,
        };
        if found != channels {
            let expected = format!("{channels} channels, as its network takes");
            return Err(Error::argument("control image", expected, found));
        }
        if let Self::Tensor(tensor) = self {
            let sum = tensor.to_dtype(DType::F32)?.sum_all()?.to_scalar::<f32>()?;
            if !sum.is_finite() {
                return Err(Error::argument("control image", "finite values", sum));
            }
        }
        Ok(())
    }

    /// `(1 or num_images, channels, height, width)`, f32 in `[0, 1]`.
    fn to_tensor(&self, size: (usize, usize), channels: usize, device: &Device) -> Result<Tensor> {
        let (width, height) = size;
        let resized =
            |picture| media::resize(picture, width as u32, height as u32, Resampling::Lanczos);
        match self {
            Self::Rgb(picture) if channels == 1 => {
                let grey = resized(&media::grey(picture));
                Ok(media::to_unit_range(&grey, device)?.narrow(1, 0, 1)?)
            }
            Self::Rgb(picture) => media::to_unit_range(&resized(picture), device),
            Self::Tensor(tensor) => {
                let tensor = tensor.to_device(device)?.to_dtype(DType::F32)?;
                upsample_nearest(&Activation::from_nchw(&tensor)?, height, width)?.to_nchw()
            }
        }
    }
}

impl Pipeline {
    /// Checks a request's controls without running any.
    pub(super) fn check_controls(&self, request: &GenerateRequest) -> Result<()> {
        for control in &request.controls {
            control.check()?;
            let channels = control.model.channels();
            control.image.check(request.num_images, channels)?;
            let device = control.model.device();
            if !device.same_device(&self.device) {
                let expected = format!("a network on {:?}, as the pipeline", self.device);
                return Err(Error::argument("control", expected, format!("{device:?}")));
            }
            match &control.model {
                ControlModel::ControlNet(net) => {
                    net.check_unet(&self.unet)?;
                    let (found, expected) = (net.config().downscale(), self.vae.downscale());
                    if found != expected {
                        let expected = format!("a ControlNet of latents {expected} times smaller");
                        return Err(Error::argument("control", expected, found));
                    }
                }
                ControlModel::T2iAdapter(adapter) => {
                    adapter.check_unet(&self.unet, self.vae.downscale())?;
                }
            }
        }
        Ok(())
    }

    /// Refuses shares of steps under a scheduler that makes its steps within one.
    pub(super) fn check_windows(&self, request: &GenerateRequest, planned: usize) -> Result<()> {
        let is_whole = |control: &Control| control.window == Window::ALL;
        match planned == 1 && request.num_steps > 1 && !request.controls.iter().all(is_whole) {
            true => Err(Error::unsupported(
                "start or end of a control under a scheduler that finds its steps itself",
                "leave them out, or take a scheduler of a given number of steps",
            )),
            false => Ok(()),
        }
    }

    /// Reads the pictures of a request's controls, once for the whole run.
    pub(super) fn read_controls<'a>(
        &self,
        request: &'a GenerateRequest,
        size: (usize, usize),
    ) -> Result<Controls<'a>> {
        let mut controls = Controls::default();
        for control in request.controls.iter().filter(|c| c.scale != 0.0) {
            let Control {
                scale,
                window,
                guess_mode,
                ..
            } = *control;
            let channels = control.model.channels();
            let image = control.image.to_tensor(size, channels, &self.device)?;
            match &control.model {
                ControlModel::ControlNet(net) => {
                    let hint = net.embed(&image)?;
                    controls.nets.push(NetControl {
                        net,
                        hint,
                        scale,
                        window,
                        guess_mode,
                    });
                }
                ControlModel::T2iAdapter(adapter) => {
                    let features = adapter.forward(&image)?;
                    let scaled = features.iter().map(|feature| feature.affine(scale, 0.0));
                    let features = scaled.collect::<Result<_>>()?;
                    controls.features.push(FeatureControl { features, window });
                }
            }
        }
        Ok(controls)
    }
}

impl ControlNet {
    /// Opens a folder as diffusers saves it, or one file in diffusers' names or the original ones (`control_model.`).
    /// [`from_checkpoint`](Self::from_checkpoint) takes one whose settings were changed.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is none, [`Error::Format`] if a file is damaged, [`Error::Weights`] if tensors
    /// are missing or do not fit.
    pub fn open(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(path)?, dtype, device)
    }

    /// The ControlNet of an open checkpoint.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_checkpoint(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Self> {
        let part = checkpoint.required(ComponentKind::ControlNet)?;
        let config = ControlNetConfig::from_json(part.config_path, part.config)?;
        Self::new(config, &part.tensors, check_weights_dtype(dtype)?, device)
    }
}

impl T2iAdapter {
    /// Opens a folder as diffusers saves it, or one file in diffusers' names or TencentARC's.
    ///
    /// # Errors
    /// As [`ControlNet::open`].
    pub fn open(path: impl AsRef<Path>, dtype: DType, device: &Device) -> Result<Self> {
        Self::from_checkpoint(&Checkpoint::open(path)?, dtype, device)
    }

    /// The T2I-Adapter of an open checkpoint.
    ///
    /// # Errors
    /// As [`ControlNet::open`].
    pub fn from_checkpoint(checkpoint: &Checkpoint, dtype: DType, device: &Device) -> Result<Self> {
        let part = checkpoint.required(ComponentKind::T2iAdapter)?;
        let config = T2iAdapterConfig::from_json(part.config_path, part.config)?;
        Self::new(config, &part.tensors, check_weights_dtype(dtype)?, device)
    }
}
