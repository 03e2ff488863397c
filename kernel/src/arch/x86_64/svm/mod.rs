//! AMD SVM: the formats the processor reads, and the way into a guest and back.
//!
//! Formats, intercept sets, ASID discipline and the TLB model are plain data and compile on the host;
//! only `run` touches the processor. Source: AMD64 APM volume 2, chapter 15 and appendix B, and what QEMU's TCG
//! does differently (noted where it matters).

pub mod asid;
pub mod intercept;
pub mod npt;
#[cfg(target_os = "none")]
pub mod run;
pub mod state;
#[cfg(not(target_os = "none"))]
pub mod tlb_model;
pub mod vmcb;
