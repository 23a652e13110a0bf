//! `docs/SCHEDULERS.md` is made of the registry; `DIFFUSION_UPDATE_DOCS=1` writes it anew.

use std::path::Path;

use diffusion_core::SigmaSchedule;
use diffusion_core::scheduler::{Entry, entries, names};
use diffusion_tests::TestResult;

const INTRODUCTION: &str = r#"# Schedulers

<!-- Made from the registry by tests/schedulers_doc.rs: DIFFUSION_UPDATE_DOCS=1 cargo test -p diffusion-tests --test schedulers_doc -->

A request names its scheduler by a short name (`dpmpp_2m`), by another name of the table (`DPM++ 2M`) or by diffusers' class, alone or
followed by a sigma schedule: `dpmpp_2m_karras`, `DPM++ 2M SDE Exponential`, `euler sgm_uniform`. Case does not matter, nor which signs stand
between words, nor a `k_` or `sample_` before them. A `scheduler_config.json` does as well, with diffusers' fields; `scheduler::from_name` and `from_config` make values of both,
and `Scheduler::config` writes a value back as JSON.

## Solvers

The order is that of convergence over 12 to 96 steps of a smooth run, with the start at first order counted and fresh noise left out; "-" where
there is none. Evaluations are those of the model in a step; "-" where they vary. What is verified against diffusers agrees with it after every
step of a run over a toy model, within 1e-4 of the largest value; what is verified against published equations agrees so with a script of its own in f64.

"#;

const CURVES: &str = r#"
Classes of diffusers that are not there: `CogVideoXDDIMScheduler` and `CogVideoXDPMScheduler`, whose variances are shifted for a video model;
`UnCLIPScheduler`, `DDPMWuerstchenScheduler`, `SCMScheduler`, `ConsistencyDecoderScheduler`, `MiniMaxH3Scheduler`, `HeliosScheduler`,
`HeliosDMDScheduler`, `FlowMapEulerDiscreteScheduler`, `PiflowScheduler` and `RFD4ProteinaScheduler`, each made for one model in a form of its
own (predicted variances, cosine ratios, angles, times that count the other way, policies, several modalities) that does not run here;
`RePaintScheduler`, whose step takes a picture and a mask; `ScoreSdeVeScheduler`, `ScoreSdeVpScheduler` and `KarrasVeScheduler`, which
unconditional models in pixels had, the last two deprecated; `AmusedScheduler`, `BlockRefinementScheduler`, `DiscreteDDIMScheduler`,
`EntropyBoundScheduler` and `VQDiffusionScheduler`, which draw tokens and no latents. Of ComfyUI's menu `sa_solver_pece` is not there;
`sa_solver` and `deis` are diffusers', of other orders and in another variable than ComfyUI's of these names. A1111's "UniPC" is `unipc_bh1` here.

## Sigma schedules

"#;

const LISTS: &str = r#"
![The noise levels of Stable Diffusion over 20 steps](images/sigma_schedules.svg)

The fields `sigmas` and `timesteps` of a configuration hold a list of one's own, whatever the number of steps: `{"sigmas": [14.6, 3.9, 0.9, 0.0]}`, of
which the last is where the run ends, or `{"timesteps": [999, 736, 455, 124]}`. In Rust they are `SigmaSchedule::Sigmas` and `Timesteps`.

## Pictures

The small model over 5, 10, 20 and 30 steps, guidance 5; those for CFG++, which want less, at 1.5. `lcm` and `tcd` are for models that were distilled
for them.

![Every solver](images/contact_sheet.png)
![CFG++](images/contact_sheet_cfg_pp.png)

The plot and the sheets come from:

"#;

/// The commands that make the pictures.
fn commands() -> String {
    let is_for_the_model = |name: &&str| {
        let other_forms = ["inverse", "edm", "flow", "cosine", "consistency"];
        !other_forms.iter().any(|part| name.contains(part))
    };
    let is_cfg_pp = |name: &&str| name.ends_with("cfg_pp");
    let (cfg_pp, others): (Vec<&str>, Vec<&str>) =
        names().filter(is_for_the_model).partition(is_cfg_pp);
    let sheet =
        "cargo run --release --example contact_sheet -- \"a red heart, flat style\" --cell 80";
    format!(
        "```sh\ncargo run --release --example sigma_schedules\n{sheet} \\\n  -o docs/images/contact_sheet.png --y scheduler={}\n\
         {sheet} \\\n  -o docs/images/contact_sheet_cfg_pp.png --guidance 1.5 --y scheduler={}\n```\n",
        others.join(","),
        cfg_pp.join(",")
    )
}

/// What a curve's levels are, and where it comes from.
fn described(curve: &SigmaSchedule) -> (&'static str, &'static str) {
    use SigmaSchedule as S;
    match curve {
        S::Native => ("the model's own, by `timestep_spacing`", "diffusers"),
        S::Karras => ("even in the power 1/7", "Karras et al. 2022"),
        S::Exponential => ("even in the logarithm", "k-diffusion"),
        S::Polyexponential => (
            "even in a power (`rho`) of the logarithm's share",
            "k-diffusion",
        ),
        S::Beta => (
            "quantiles of the beta distribution, 0.6 and 0.6",
            "diffusers, A1111 (Lee et al. 2024)",
        ),
        S::BetaTimesteps => ("timesteps at such quantiles, each once", "ComfyUI's `beta`"),
        S::Lu => (
            "even in the logarithm, as DPM-Solver has it",
            "Lu et al. 2022",
        ),
        S::Laplace => ("quantiles of the Laplace distribution", "Hang et al. 2024"),
        S::SgmUniform => ("even in the timestep, without the lowest", "Stability AI"),
        S::Simple => ("every n-th of the model", "ComfyUI"),
        S::Normal => (
            "even in the timestep, highest and lowest included",
            "ComfyUI",
        ),
        S::DdimUniform => (
            "whole strides from the second timestep: more than the steps where they do not divide",
            "ComfyUI",
        ),
        S::KlOptimal => ("even in the arc tangent", "Sabour et al. 2024"),
        S::AlignYourSteps => ("optimised for SD 1.5, interpolated", "Sabour et al. 2024"),
        S::AlignYourStepsSdxl => ("optimised for SDXL, interpolated", "Sabour et al. 2024"),
        S::Gits => ("optimised by the trajectory's shape", "Chen et al. 2024"),
        S::LinearQuadratic => ("straight, then quadratic", "Polyak et al. 2024"),
        S::Flow => ("shares of noise of a flow model", "diffusers"),
        S::Sigmas(_) | S::Timesteps(_) => ("a list of one's own", ""),
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let number = |n: u8| match n {
        0 => "-".to_owned(),
        n => n.to_string(),
    };
    let class = match entry.verified.starts_with("diffusers") {
        true => {
            let others = entry.other_classes.iter().copied();
            let classes = [entry.class].into_iter().chain(others);
            let quoted: Vec<String> = classes.map(|class| format!("`{class}`")).collect();
            quoted.join(", ")
        }
        false => String::new(),
    };
    vec![
        format!("`{}`", entry.name),
        entry.labels.join(", "),
        class,
        number(entry.order),
        number(entry.evaluations),
        if entry.is_stochastic { "yes" } else { "" }.to_owned(),
        entry.source.to_owned(),
        entry.verified.to_owned(),
    ]
}

/// Columns one below another, so that the table can be read as text.
fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let widths = header.iter().enumerate().map(|(column, title)| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.fold(title.chars().count(), usize::max)
    });
    let widths: Vec<usize> = widths.collect();
    let line = |cells: &[String]| {
        let padded = cells.iter().zip(&widths);
        let padded: Vec<String> = padded
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("| {} |\n", padded.join(" | "))
    };
    let titles: Vec<String> = header.iter().map(|&title| title.to_owned()).collect();
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    let rows = rows.iter().map(|row| line(row));
    [line(&titles), line(&rule)]
        .into_iter()
        .chain(rows)
        .collect()
}

fn document() -> String {
    let header = [
        "name",
        "also",
        "diffusers' class",
        "order",
        "evaluations",
        "stochastic",
        "source",
        "verified against",
    ];
    let solvers: Vec<_> = entries().iter().map(row).collect();
    let curves = SigmaSchedule::NAMED.map(|(name, curve)| {
        let (levels, source) = described(&curve);
        vec![format!("`{name}`"), levels.to_owned(), source.to_owned()]
    });
    let (solvers, curves) = (
        table(&header, &solvers),
        table(&["name", "levels", "source"], &curves),
    );
    let commands = commands();
    format!("{INTRODUCTION}{solvers}{CURVES}{curves}{LISTS}{commands}")
}

#[test]
fn the_table_of_schedulers_is_fresh() -> TestResult {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/SCHEDULERS.md");
    let fresh = document();
    if std::env::var_os("DIFFUSION_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &fresh)?;
    }
    let found = std::fs::read_to_string(&path)?;
    assert!(
        found == fresh,
        "docs/SCHEDULERS.md is stale: DIFFUSION_UPDATE_DOCS=1 writes it anew"
    );
    Ok(())
}
