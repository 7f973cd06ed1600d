//! Which instruction sets there are, which one this processor runs, and the macro that picks.

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512 F, BW, DQ, VL, VNNI and BF16.
    Avx512Bf16,
    /// AVX-512 F, BW, DQ, VL and VNNI (not the first processors with AVX-512, which run AVX2).
    Avx512,
    /// AVX2, FMA and F16C.
    Avx2,
    /// NEON (aarch64).
    Neon,
    /// Plain Rust, everywhere.
    Portable,
}

impl Isa {
    /// All of them, what asks most of a processor first.
    pub const ALL: [Isa; 5] = [
        Isa::Avx512Bf16,
        Isa::Avx512,
        Isa::Avx2,
        Isa::Neon,
        Isa::Portable,
    ];

    /// The name used by `DOKJA_ISA` and in every report.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512Bf16 => "avx512-bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }

    /// The reverse of [`Isa::name`].
    pub fn from_name(name: &str) -> Option<Isa> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Whether this processor can run it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Neon => false,
            #[cfg(target_arch = "aarch64")]
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => false,
            #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
            _ => false,
        }
    }

    /// Those this processor can run, fastest first; never empty.
    pub fn available() -> Vec<Isa> {
        let mut isas: Vec<Isa> = Isa::ALL
            .into_iter()
            .filter(|isa| isa.is_available())
            .collect();
        // AMD's dot products of bf16 do twice as much as multiply-adds of f32, Intel's less (docs/LOG.md).
        if isas[0] == Isa::Avx512Bf16 && !is_amd() {
            isas.swap(0, 1);
        }
        isas
    }

    /// The fastest that this processor can run.
    pub fn detect() -> Isa {
        Isa::available()[0]
    }
}

/// Whether AMD made this processor. What is fast is chosen by the maker and not by a clock, so that a machine always
/// computes the same bits.
pub(crate) fn is_amd() -> bool {
    amd_family().is_some()
}

/// The family of a processor that AMD made: 23 is Zen to Zen 2, 25 is Zen 3 and 4, 26 is Zen 5.
pub(crate) fn amd_family() -> Option<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid;
        // A hypervisor may take microseconds to answer.
        static FAMILY: std::sync::LazyLock<Option<u32>> = std::sync::LazyLock::new(|| {
            let maker = __cpuid(0);
            let maker = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
            let signature = __cpuid(1).eax;
            let family = (signature >> 8 & 15) + (signature >> 20 & 255);
            (maker.as_flattened() == b"AuthenticAMD").then_some(family)
        });
        *FAMILY
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// Runs `$f::<S>($args)` for the `S: Simd` that belongs to the value `$isa`.
///
/// `$f` is an `unsafe fn` generic over `S: Simd`, marked `#[inline(always)]`, as is everything below it.
///
/// ```text
/// dispatch!(cpu.isa, rms_norm_rows(y: *mut f32, x: *const f32, rows: usize) -> ());
/// ```
/// The names in the list are local variables of the caller, given with their types.
#[macro_export]
macro_rules! dispatch {
    ($isa:expr, $f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
        unsafe fn avx512_bf16($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller checked the features and vouches for the arguments.
            unsafe { $f::<$crate::arch::avx512::Avx512Bf16>($($arg),*) }
        }
        match $isa {
            // SAFETY: `Cpu::new` refuses an instruction set that this processor lacks; the arguments are
            // valid by the contract of `$f`, stated where the macro is used.
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512Bf16 => unsafe { avx512_bf16($($arg),*) },
            isa => $crate::dispatch_integers!(isa, $f($($arg: $ty),*) $(-> $ret)?),
        }
    }};
}

/// As [`dispatch!`], for kernels that multiply no bf16: those are not compiled again for the instruction set
/// that differs only there.
#[macro_export]
macro_rules! dispatch_integers {
    ($isa:expr, $f:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as for `dispatch!` (so for the block below).
            unsafe { $f::<$crate::arch::avx512::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: as above.
            unsafe { $f::<$crate::arch::avx2::Avx2>($($arg),*) }
        }
        // SAFETY: as above.
        unsafe {
            match $isa {
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx512 | $crate::Isa::Avx512Bf16 => avx512($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::Isa::Avx2 => avx2($($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::Isa::Neon => $f::<$crate::arch::neon::Neon>($($arg),*),
                _ => $f::<$crate::arch::portable::Portable>($($arg),*),
            }
        }
    }};
}
