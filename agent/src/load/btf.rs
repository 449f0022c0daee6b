//! Offsets of members of kernel structures, from the running kernel's BTF.
//!
//! Only that: no relocation, no types for the verifier. The raw data is walked once and thrown away, since an index of
//! all types of a kernel costs more memory than the agent otherwise needs. Format: the kernel's
//! `Documentation/bpf/btf.rst`.

use std::{collections::HashMap, path::Path};

/// Why BTF could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file could not be read.
    #[error(
        "{path}: {source}; the kernel must be built with CONFIG_DEBUG_INFO_BTF=y (Linux 5.17 and later of every large distribution is)"
    )]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The data is not BTF.
    #[error("BTF is malformed at byte {0}")]
    Malformed(usize),
    /// A structure or member does not exist on this kernel.
    #[error("this kernel has no {0}; it is too old or too new for this version of the agent")]
    Missing(String),
    /// Members that are read at once lie too far from each other.
    #[error(
        "{members:?} of {name} lie more than {size} bytes apart on this kernel; it is too new for this version of the agent"
    )]
    Apart {
        /// The structure.
        name: &'static str,
        /// The members.
        members: [&'static str; 3],
        /// Bytes that are read.
        size: usize,
    },
}

const HEADER: usize = 24;
const MAGIC: u16 = 0xeb9f;

const KIND_INT: u32 = 1;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

/// The raw BTF of a kernel.
pub struct Btf {
    data: Vec<u8>,
    strings: usize,
    /// Byte offset of each type, by id - 1.
    types: Vec<u32>,
    /// Byte offsets of the structures that were asked for, by name.
    structs: HashMap<&'static str, u32>,
}

struct Member {
    name: u32,
    type_id: u32,
    bits: u32,
}

impl Btf {
    /// Reads BTF and finds the structures in `names`.
    ///
    /// # Errors
    /// When the file can't be read or is malformed.
    pub fn read(path: &Path, names: &[&'static str]) -> Result<Self, BtfError> {
        let data = std::fs::read(path).map_err(|source| BtfError::Read { path: path.display().to_string(), source })?;
        Self::parse(data, names)
    }

    fn parse(data: Vec<u8>, names: &[&'static str]) -> Result<Self, BtfError> {
        let mut btf = Self { data, strings: 0, types: Vec::new(), structs: HashMap::new() };
        if btf.data.len() < HEADER || btf.u16_at(0)? != MAGIC {
            return Err(BtfError::Malformed(0));
        }
        let header = btf.u32_at(4)? as usize;
        let start = header + btf.u32_at(8)? as usize;
        let end = start + btf.u32_at(12)? as usize;
        btf.strings = header + btf.u32_at(16)? as usize;
        let mut at = start;
        while at < end {
            let info = btf.u32_at(at + 4)?;
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            btf.types.push(u32::try_from(at).map_err(|_| BtfError::Malformed(at))?);
            if kind == KIND_STRUCT && count > 0 {
                let name = btf.name_at(btf.u32_at(at)?);
                // A name may stand for several structures, of modules or drivers; the first is the kernel's own.
                if let Some(known) = names.iter().find(|known| known.as_bytes() == name) {
                    btf.structs.entry(known).or_insert(at as u32);
                }
            }
            at += 12
                + match kind {
                    KIND_INT | KIND_VAR | KIND_DECL_TAG => 4,
                    KIND_ARRAY => 12,
                    KIND_STRUCT | KIND_UNION | KIND_DATASEC | KIND_ENUM64 => 12 * count,
                    KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                    _ => 0,
                };
        }
        Ok(btf)
    }

    fn u16_at(&self, at: usize) -> Result<u16, BtfError> {
        let bytes = self.data.get(at..at + 2).ok_or(BtfError::Malformed(at))?;
        Ok(u16::from_ne_bytes([bytes[0], bytes[1]]))
    }

    fn u32_at(&self, at: usize) -> Result<u32, BtfError> {
        let bytes = self.data.get(at..at + 4).ok_or(BtfError::Malformed(at))?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn name_at(&self, offset: u32) -> &[u8] {
        let rest = self.data.get(self.strings + offset as usize..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        &rest[..end]
    }

    fn members(&self, at: u32) -> Result<Vec<Member>, BtfError> {
        let at = at as usize;
        let info = self.u32_at(at + 4)?;
        let bitfields = info >> 31 == 1;
        (0..(info & 0xffff) as usize)
            .map(|index| {
                let member = at + 12 + 12 * index;
                let offset = self.u32_at(member + 8)?;
                let bits = if bitfields { offset & 0x00ff_ffff } else { offset };
                Ok(Member { name: self.u32_at(member)?, type_id: self.u32_at(member + 4)?, bits })
            })
            .collect()
    }

    /// The structure or union behind typedefs and qualifiers.
    fn composite(&self, mut type_id: u32) -> Option<u32> {
        for _ in 0..16 {
            let at = *self.types.get((type_id as usize).checked_sub(1)?)?;
            let kind = (self.u32_at(at as usize + 4).ok()? >> 24) & 0x1f;
            match kind {
                KIND_STRUCT | KIND_UNION => return Some(at),
                // Typedef, volatile, const, restrict, type tag.
                8 | 9 | 10 | 11 | 18 => type_id = self.u32_at(at as usize + 8).ok()?,
                _ => return None,
            }
        }
        None
    }

    fn find(&self, at: u32, name: &[u8], depth: u8) -> Option<(u32, u32)> {
        let members = self.members(at).ok()?;
        if let Some(found) = members.iter().find(|member| self.name_at(member.name) == name) {
            return Some((found.bits, found.type_id));
        }
        if depth == 0 {
            return None;
        }
        members.iter().filter(|member| self.name_at(member.name).is_empty()).find_map(|member| {
            let (bits, type_id) = self.find(self.composite(member.type_id)?, name, depth - 1)?;
            Some((member.bits + bits, type_id))
        })
    }

    /// Byte offset of a member, by a path such as `f_path.dentry`; members of anonymous parts count as the
    /// structure's own. Each step may be an alternative such as `parent|__parent`, for members that were renamed.
    ///
    /// # Errors
    /// When the structure or a member does not exist.
    pub fn offset(&self, structure: &str, path: &str) -> Result<u32, BtfError> {
        let missing = || BtfError::Missing(format!("{structure}.{path}"));
        let mut at = *self.structs.get(structure).ok_or_else(missing)?;
        let mut total = 0;
        let mut steps = path.split('.').peekable();
        while let Some(step) = steps.next() {
            let (bits, type_id) =
                step.split('|').find_map(|name| self.find(at, name.as_bytes(), 4)).ok_or_else(missing)?;
            total += bits / 8;
            if steps.peek().is_some() {
                at = self.composite(type_id).ok_or_else(missing)?;
            }
        }
        Ok(total)
    }

    /// Size of a structure in bytes.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn size(&self, structure: &str) -> Result<u32, BtfError> {
        let at = self.structs.get(structure).ok_or_else(|| BtfError::Missing(structure.to_owned()))?;
        self.u32_at(*at as usize + 8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_kernel() {
        let Ok(btf) = Btf::read(Path::new("/sys/kernel/btf/vmlinux"), &["file", "dentry", "upid"]) else {
            eprintln!("this kernel has no BTF: nothing to test");
            return;
        };
        let path = btf.offset("file", "f_path").expect("file.f_path");
        assert_eq!(btf.offset("file", "f_path.dentry").expect("nested"), path + 8, "struct path is mnt, dentry");
        assert_eq!(btf.offset("dentry", "d_name.name").expect("qstr"), btf.offset("dentry", "d_name").unwrap() + 8);
        assert_eq!(btf.size("upid").expect("upid"), 16);
        assert!(matches!(btf.offset("file", "f_nothing"), Err(BtfError::Missing(_))));
        assert!(matches!(btf.offset("nothing", "x"), Err(BtfError::Missing(_))));
    }

    #[test]
    fn refuses_what_is_not_btf() {
        assert!(matches!(Btf::parse(Vec::new(), &[]), Err(BtfError::Malformed(0))));
        assert!(matches!(Btf::parse(vec![0; 64], &[]), Err(BtfError::Malformed(0))));
        let mut cut = vec![0u8; 24];
        cut[..2].copy_from_slice(&MAGIC.to_ne_bytes());
        cut[4..8].copy_from_slice(&24u32.to_ne_bytes());
        cut[12..16].copy_from_slice(&1000u32.to_ne_bytes());
        assert!(matches!(Btf::parse(cut, &[]), Err(BtfError::Malformed(_))));
    }
}
