//! The schedulers that are known by name.

use super::registry::Entry;
use super::{
    ConsistencyModel, CosineDpmSolverMultistep, Ddim, DdimInverse, Ddpm, Deis, Dpm2, Dpm2Ancestral,
    DpmAdaptive, DpmFast, DpmPp2mCfgPp, DpmPp2sAncestral, DpmPpMultistepSde, DpmSolverMultistep,
    DpmSolverMultistepInverse, DpmSolverSde, DpmSolverSinglestep, EdmDpmSolverMultistep, EdmEuler,
    ErSde, Euler, EulerAncestral, EulerCfgPp, FlowMatchEuler, FlowMatchEulerAncestral,
    FlowMatchHeun, FlowMatchLcm, GradientEstimation, Heun, HeunPp, Ipndm, Lcm, Lms, Pndm,
    ResMultistep, Restart, SaSolver, Seeds, Tcd, UniPc,
};

/// Every step's latents, in a run over a toy model.
const DIFFUSERS: &str = "diffusers 0.42.1";
/// The same, by a script of its own in f64.
const EQUATIONS: &str = "published equations";

const KARRAS: &str = "Karras et al. 2022";
const LU: &str = "Lu et al. 2022 (DPM-Solver)";
const LU_PP: &str = "Lu et al. 2022 (DPM-Solver++)";
const SONG: &str = "Song et al. 2020";
const LIU: &str = "Liu et al. 2022 (PNDM)";
const CFG_PP: &str = "Chung et al. 2024";
const FLOW: &str = "Esser et al. 2024";
const SEEDS: &str = "Gonzalez et al. 2023";

/// Of a name whose class has a form for CFG++ as well.
const PLAIN: &str = r#"{"cfg_pp": false}"#;

pub(super) const TABLE: &[Entry] = &[
    Entry::new::<Euler>("euler", 1, 1)
        .labels(&["Euler"])
        .source(KARRAS, DIFFUSERS),
    Entry::new::<EulerAncestral>("euler_ancestral", 1, 1)
        .labels(&["Euler a"])
        .stochastic()
        .source("Crowson 2022 (k-diffusion)", DIFFUSERS),
    Entry::new::<EulerCfgPp>("euler_cfg_pp", 1, 1)
        .labels(&["Euler CFG++"])
        .fields(r#"{"eta": 0.0}"#)
        .source(CFG_PP, EQUATIONS),
    Entry::new::<EulerCfgPp>("euler_ancestral_cfg_pp", 1, 1)
        .labels(&["Euler a CFG++", "euler_a_cfg_pp"])
        .fields(r#"{"eta": 1.0}"#)
        .stochastic()
        .source(CFG_PP, EQUATIONS),
    Entry::new::<Heun>("heun", 2, 2)
        .labels(&["Heun"])
        .source(KARRAS, DIFFUSERS),
    Entry::new::<HeunPp>("heunpp2", 1, 3)
        .labels(&["Heun++"]).source("Carzit 2023", EQUATIONS),
    Entry::new::<Dpm2>("dpm_2", 2, 2)
        .labels(&["DPM2", "kdpm_2", "kdpm2"])
        .source(LU, DIFFUSERS),
    Entry::new::<Dpm2Ancestral>("dpm_2_ancestral", 1, 2)
        .labels(&["DPM2 a", "kdpm_2_a", "kdpm2_a", "kdpm2_ancestral", "dpm_2_a"])
        .stochastic()
        .source("Crowson 2022 (k-diffusion)", DIFFUSERS),
    Entry::new::<Lms>("lms", 3, 1)
        .labels(&["LMS"])
        .source("Crowson 2022 (k-diffusion)", DIFFUSERS),
    Entry::new::<Ddim>("ddim", 1, 1)
        .labels(&["DDIM"])
        .other_classes(&["DDIMParallelScheduler"])
        .fields(PLAIN)
        .source(SONG, DIFFUSERS),
    Entry::new::<Ddim>("ddim_cfg_pp", 1, 1)
        .labels(&["DDIM CFG++", "ddim_cfgpp"])
        .fields(r#"{"cfg_pp": true}"#)
        .source(CFG_PP, EQUATIONS),
    Entry::new::<DdimInverse>("ddim_inverse", 1, 1).source(SONG, DIFFUSERS),
    Entry::new::<Ddpm>("ddpm", 1, 1)
        .labels(&["DDPM"])
        .other_classes(&["DDPMParallelScheduler"])
        .stochastic()
        .source("Ho et al. 2020", DIFFUSERS),
    Entry::new::<Pndm>("pndm", 2, 1).source(LIU, DIFFUSERS),
    Entry::new::<Pndm>("plms", 2, 1)
        .labels(&["PLMS"])
        .fields(r#"{"skip_prk_steps": true}"#)
        .source(LIU, DIFFUSERS),
    Entry::new::<DpmSolverMultistep>("dpmpp_2m", 2, 1)
        .labels(&["DPM++ 2M", "dpm++2m"])
        .fields(r#"{"algorithm_type": "dpmsolver++", "solver_order": 2}"#)
        .source(LU_PP, DIFFUSERS),
    Entry::new::<DpmPp2mCfgPp>("dpmpp_2m_cfg_pp", 2, 1).source(CFG_PP, EQUATIONS),
    Entry::new::<DpmSolverMultistep>("dpmpp_3m", 2, 1)
        .labels(&["DPM++ 3M"])
        .fields(r#"{"algorithm_type": "dpmsolver++", "solver_order": 3}"#)
        .source(LU_PP, DIFFUSERS),
    Entry::new::<DpmSolverMultistep>("dpm_solver", 2, 1)
        .labels(&["dpmsolver"])
        .fields(
            r#"{"algorithm_type": "dpmsolver", "solver_order": 2, "final_sigmas_type": "sigma_min"}"#,
        )
        .source(LU, DIFFUSERS),
    Entry::new::<DpmSolverMultistepInverse>("dpmpp_2m_inverse", 2, 1)
        .fields(r#"{"algorithm_type": "dpmsolver++", "solver_order": 2}"#)
        .source(LU_PP, DIFFUSERS),
    Entry::new::<CosineDpmSolverMultistep>("cosine_dpmpp_2m_sde", 1, 1)
        .fields(r#"{"algorithm_type": "sde-dpmsolver++", "solver_order": 2}"#)
        .stochastic()
        .source("Evans et al. 2024", DIFFUSERS),
    Entry::new::<DpmSolverSinglestep>("dpmpp_2s", 2, 1)
        .labels(&["DPM++ 2S"])
        .fields(r#"{"algorithm_type": "dpmsolver++", "solver_order": 2}"#)
        .source(LU_PP, DIFFUSERS),
    Entry::new::<DpmPp2sAncestral>("dpmpp_2s_ancestral", 1, 2)
        .labels(&["DPM++ 2S a", "dpm++2s_a"])
        .fields(PLAIN)
        .stochastic()
        .source(LU_PP, EQUATIONS),
    Entry::new::<DpmPp2sAncestral>("dpmpp_2s_ancestral_cfg_pp", 2, 2)
        .fields(r#"{"cfg_pp": true}"#)
        .stochastic()
        .source(CFG_PP, EQUATIONS),
    Entry::new::<DpmSolverSde>("dpmpp_sde", 1, 2)
        .labels(&["DPM++ SDE", "dpmpp_sde_gpu"])
        .stochastic()
        .source(LU_PP, DIFFUSERS),
    Entry::new::<DpmPpMultistepSde>("dpmpp_2m_sde", 1, 1)
        .labels(&["DPM++ 2M SDE", "dpmpp_2m_sde_gpu", "dpm++2m_sde"])
        .fields(r#"{"solver_order": 2, "solver_type": "midpoint"}"#)
        .stochastic()
        .source(LU_PP, EQUATIONS),
    Entry::new::<DpmPpMultistepSde>("dpmpp_2m_sde_heun", 1, 1)
        .labels(&["DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun_gpu"])
        .fields(r#"{"solver_order": 2, "solver_type": "heun"}"#)
        .stochastic()
        .source(LU_PP, EQUATIONS),
    Entry::new::<DpmPpMultistepSde>("dpmpp_3m_sde", 1, 1)
        .labels(&["DPM++ 3M SDE", "dpmpp_3m_sde_gpu"])
        .fields(r#"{"solver_order": 3, "solver_type": "midpoint"}"#)
        .stochastic()
        .source(LU_PP, EQUATIONS),
    Entry::new::<DpmFast>("dpm_fast", 3, 0)
        .labels(&["DPM fast"])
        .source(LU, EQUATIONS),
    Entry::new::<DpmAdaptive>("dpm_adaptive", 3, 0)
        .labels(&["DPM adaptive"])
        .fields(r#"{"solver_order": 3}"#)
        .source(LU, EQUATIONS),
    Entry::new::<Deis>("deis", 2, 1)
        .labels(&["DEIS"])
        .source("Zhang and Chen 2022", DIFFUSERS),
    Entry::new::<UniPc>("unipc", 3, 1)
        .labels(&["UniPC", "uni_pc_bh2"])
        .fields(r#"{"solver_type": "bh2"}"#)
        .source("Zhao et al. 2023", DIFFUSERS),
    Entry::new::<UniPc>("unipc_bh1", 3, 1)
        .labels(&["uni_pc"])
        .fields(r#"{"solver_type": "bh1"}"#)
        .source("Zhao et al. 2023", DIFFUSERS),
    Entry::new::<Ipndm>("ipndm", 2, 1)
        .labels(&["IPNDM"])
        .fields(r#"{"lower_order_final": true, "variable_steps": false}"#)
        .source(LIU, DIFFUSERS),
    Entry::new::<Ipndm>("ipndm_v", 2, 1)
        .fields(r#"{"lower_order_final": true, "variable_steps": true}"#)
        .source("Zhang and Chen 2022", EQUATIONS),
    Entry::new::<SaSolver>("sa_solver", 1, 1)
        .fields(r#"{"algorithm_type": "data_prediction"}"#)
        .stochastic()
        .source("Xue et al. 2023", DIFFUSERS),
    Entry::new::<Lcm>("lcm", 0, 1)
        .labels(&["LCM"])
        .stochastic()
        .source("Luo et al. 2023", DIFFUSERS),
    Entry::new::<Tcd>("tcd", 1, 1)
        .labels(&["TCD"])
        .source("Zheng et al. 2024", DIFFUSERS),
    Entry::new::<ConsistencyModel>("consistency_model", 0, 1)
        .stochastic()
        .source("Song et al. 2023", DIFFUSERS),
    Entry::new::<Restart>("restart", 2, 2)
        .labels(&["Restart"])
        .stochastic()
        .source("Xu et al. 2023", EQUATIONS),
    Entry::new::<ErSde>("er_sde", 1, 1)
        .fields(r#"{"solver_order": 3}"#)
        .stochastic()
        .source("Cui et al. 2023", EQUATIONS),
    Entry::new::<Seeds>("seeds_2", 2, 2)
        .fields(r#"{"stages": "two"}"#)
        .stochastic()
        .source(SEEDS, EQUATIONS),
    Entry::new::<Seeds>("seeds_3", 2, 3)
        .fields(r#"{"stages": "three"}"#)
        .stochastic()
        .source(SEEDS, EQUATIONS),
    Entry::new::<Seeds>("exp_heun_2_x0", 2, 2)
        .fields(r#"{"stages": "heun", "eta": 0.0}"#)
        .source("Hochbruck and Ostermann 2010", EQUATIONS),
    Entry::new::<Seeds>("exp_heun_2_x0_sde", 2, 2)
        .fields(r#"{"stages": "heun", "eta": 1.0}"#)
        .stochastic()
        .source(SEEDS, EQUATIONS),
    Entry::new::<ResMultistep>("res_multistep", 2, 1)
        .fields(r#"{"eta": 0.0, "cfg_pp": false}"#)
        .source("Zhang et al. 2023 (RES)", EQUATIONS),
    Entry::new::<ResMultistep>("res_multistep_ancestral", 1, 1)
        .fields(r#"{"eta": 1.0, "cfg_pp": false}"#)
        .stochastic()
        .source("Zhang et al. 2023 (RES)", EQUATIONS),
    Entry::new::<ResMultistep>("res_multistep_cfg_pp", 2, 1)
        .fields(r#"{"eta": 0.0, "cfg_pp": true}"#)
        .source(CFG_PP, EQUATIONS),
    Entry::new::<ResMultistep>("res_multistep_ancestral_cfg_pp", 1, 1)
        .fields(r#"{"eta": 1.0, "cfg_pp": true}"#)
        .stochastic()
        .source(CFG_PP, EQUATIONS),
    Entry::new::<GradientEstimation>("gradient_estimation", 1, 1)
        .labels(&["euler_ge"])
        .fields(PLAIN)
        .source("Permenter and Yuan 2024", EQUATIONS),
    Entry::new::<GradientEstimation>("gradient_estimation_cfg_pp", 1, 1)
        .fields(r#"{"cfg_pp": true}"#)
        .source(CFG_PP, EQUATIONS),
    Entry::new::<EdmEuler>("edm_euler", 1, 1).source(KARRAS, DIFFUSERS),
    Entry::new::<EdmDpmSolverMultistep>("edm_dpmpp_2m", 2, 1)
        .fields(r#"{"algorithm_type": "dpmsolver++", "solver_order": 2}"#)
        .source(LU_PP, DIFFUSERS),
    Entry::new::<FlowMatchEuler>("flow_match_euler", 1, 1).source(FLOW, DIFFUSERS),
    Entry::new::<FlowMatchEulerAncestral>("flow_match_euler_ancestral", 1, 1)
        .labels(&["euler_ancestral_rf"])
        .stochastic()
        .source("ComfyUI", DIFFUSERS),
    Entry::new::<FlowMatchHeun>("flow_match_heun", 2, 2).source(FLOW, DIFFUSERS),
    Entry::new::<FlowMatchLcm>("flow_match_lcm", 0, 1)
        .stochastic()
        .source("Luo et al. 2023", DIFFUSERS),
];
