//! Which instruction set a kernel runs on, decided once at run time.

#[cfg(target_arch = "x86_64")]
use decode::math;

/// An instruction set that this machine was seen to have: holding one is the proof that its kernels may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa(Level);

/// The closed list of instruction sets that kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// Plain Rust; `mul_add` may be a library call.
    Portable,
    /// AVX2 with FMA, 256-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 (F, VL, DQ, BW), 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// Plain Rust, available everywhere.
    pub const PORTABLE: Isa = Isa(Level::Portable);

    /// The fastest instruction set of this machine.
    #[must_use]
    pub fn best() -> Isa {
        Isa::available().pop().unwrap_or(Isa::PORTABLE)
    }

    /// Everything this machine can run, slowest first; never empty.
    #[must_use]
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut, reason = "only x86-64 has more than the portable level")]
        let mut found = vec![Isa::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        {
            if math::has_avx2() {
                found.push(Isa(Level::Avx2));
            }
            if math::has_avx512() {
                found.push(Isa(Level::Avx512));
            }
        }
        found
    }

    /// A short name for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

/// Compiles one `#[inline(always)]` function once per instruction set and dispatches on an [`Isa`].
///
/// The body is the same source in each, made of IEEE operations and explicit `mul_add`, which the compiler may
/// vectorise but not reorder: all instances give the same bits by construction.
macro_rules! per_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:path;) => {
        $(#[$doc])*
        $vis fn $name(isa: $crate::cpu::kernels::Isa, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
            fn avx512($($arg: $ty),*) {
                $body($($arg),*);
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) {
                $body($($arg),*);
            }
            match isa.level() {
                $crate::cpu::kernels::isa::Level::Portable => $body($($arg),*),
                #[cfg(target_arch = "x86_64")]
                #[expect(unsafe_code, reason = "calling into a target feature; the Isa value proves the machine has it")]
                // SAFETY: an `Isa` of this level exists only where the features were detected.
                $crate::cpu::kernels::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                #[expect(unsafe_code, reason = "calling into a target feature; the Isa value proves the machine has it")]
                // SAFETY: an `Isa` of this level exists only where the features were detected.
                $crate::cpu::kernels::isa::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use per_isa;
