//! The program, instruction by instruction, over the maps of a [`Director`]: what a packet costs, counted, where a
//! clock would say something else each time.
//!
//! It knows what the director's program is made of (RFC 9669, with the 64-bit atomic operations and calls of functions)
//! and the helpers of the packets that are counted. Map rows are the real ones, shared with the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::{Object, generated::bpf_insn};
use lvs_xdp_common::{abi::SECONDS_SHIFT, atomic::Word, maps::Maps as _};
use memmap2::{MmapOptions, MmapRaw};

use crate::trial::{Director, LOOPBACK};

/// What running the program on a packet took.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Footprint {
    /// Instructions, of all functions.
    pub instructions: u32,
    /// Calls of helpers other than map look-ups, by number (`enum bpf_func_id`). The kernel makes an instruction of
    /// 118, which reads the clock.
    pub helpers: BTreeMap<i32, u32>,
    /// Look-ups in each map.
    pub lookups: BTreeMap<String, u32>,
    /// Cache lines of 64 bytes that were read or written in each map.
    pub lines: BTreeMap<String, usize>,
}

/// Where an address of the program's leads: to the context, which is no memory here.
const CONTEXT: u64 = 0x1000;
/// A map's number with this is what the program has for a pointer to the map.
const MAP: u64 = 0xfff0_0000_0000_0000;
const STACK: usize = 512;
const CALLS: usize = 8;
/// More than any packet takes.
const MOST: u32 = 100_000;

mod helper {
    pub(super) const MAP_LOOKUP_ELEM: i32 = 1;
    pub(super) const JIFFIES64: i32 = 118;
}

mod map_type {
    pub(super) const ARRAY: u32 = 2;
    pub(super) const PERCPU_ARRAY: u32 = 6;
}

enum Memory {
    Shared(MmapRaw),
    Own(Vec<Word>),
}

/// A map, or a section of data.
struct Table {
    name: String,
    is_array: bool,
    stride: u64,
    rows: u64,
    memory: Memory,
}

impl Table {
    fn base(&self) -> u64 {
        match &self.memory {
            Memory::Shared(map) => map.as_mut_ptr().expose_provenance() as u64,
            Memory::Own(words) => words.as_ptr().expose_provenance() as u64,
        }
    }
}

/// The program, ready to be run.
pub struct Interpreter<'a> {
    director: &'a Director,
    code: Vec<bpf_insn>,
    tables: Vec<Table>,
}

impl<'a> Interpreter<'a> {
    /// The program that is in the binary, over a director's maps.
    ///
    /// # Errors
    ///
    /// When there is none, or a map cannot be mapped.
    pub fn new(director: &'a Director) -> Result<Self> {
        let mut object = Object::parse(lvs_xdp::dataplane::object_file())?;
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        let names: Vec<String> = object.maps.keys().cloned().collect();
        let mut tables = Vec::new();
        for name in &names {
            tables.push(table(director, name, &object.maps[name])?);
        }
        let maps = object.maps.clone();
        let numbered = (0..)
            .zip(&names)
            .map(|(number, name)| (name.as_str(), number, &maps[name]));
        object.relocate_maps(numbered, &sections)?;
        object.relocate_calls(&sections)?;
        let program = object.programs.get("director").context("no program `director`")?;
        let function = &object.functions[&program.function_key()];
        Ok(Self {
            director,
            code: function.instructions.clone(),
            tables,
        })
    }

    /// Instructions of the whole program.
    pub fn length(&self) -> usize {
        self.code.len()
    }

    /// Runs it on a frame that came in by [`LOOPBACK`], at the time that the director's clock was stopped; what it
    /// answers, and what it took.
    ///
    /// # Errors
    ///
    /// When the program does what this does not know.
    pub fn run(&mut self, frame: &[u8]) -> Result<(u64, Footprint)> {
        let tables = self.director.dataplane.tables();
        let control = tables.control();
        // The middle of the second that the clock stands at.
        let since = (u64::from(tables.now()) << SECONDS_SHIFT) + (1 << (SECONDS_SHIFT - 1));
        let jiffies = control
            .jiffies_base
            .load()
            .wrapping_add(since / control.seconds_per_jiffy.load());
        let mut frame = frame.to_vec();
        let mut stack = vec![0; STACK * CALLS];
        Run {
            code: &self.code,
            tables: &self.tables,
            frame: (frame.as_mut_ptr().expose_provenance() as u64, frame.len()),
            stack: stack.as_mut_ptr().expose_provenance() as u64,
            jiffies,
            footprint: Footprint::default(),
            touched: BTreeSet::new(),
        }
        .finish()
    }
}

/// A map's memory: the kernel's where it is shared, else some of its own, all zeros but for sections of data.
fn table(director: &Director, name: &str, map: &aya_obj::Map) -> Result<Table> {
    let stride = u64::from(map.value_size()).next_multiple_of(8);
    let is_array = matches!(map.map_type(), map_type::ARRAY | map_type::PERCPU_ARRAY);
    let is_data = name.starts_with('.');
    let shared = if map.map_type() == map_type::ARRAY && !is_data {
        let map = director.map(name)?;
        let rows = u64::from(map.info()?.max_entries());
        let memory = MmapOptions::new()
            .len(usize::try_from(rows * stride)?)
            .map_raw(map.fd().as_fd().as_raw_fd())
            .with_context(|| format!("cannot map {name}"))?;
        Some((rows, Memory::Shared(memory)))
    } else {
        None
    };
    let (rows, memory) = shared.unwrap_or_else(|| {
        // As many as a trial has destinations, at least.
        let rows = u64::from(map.max_entries()).max(1024);
        let words = usize::try_from(rows * stride / 8).unwrap_or(0);
        let own = Vec::from_iter((0..words).map(|_| Word::default()));
        for (word, bytes) in own.iter().zip(map.data().chunks(8)) {
            let mut eight = [0; 8];
            eight[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(eight));
        }
        (rows, Memory::Own(own))
    });
    Ok(Table {
        name: name.to_owned(),
        is_array,
        stride,
        rows,
        memory,
    })
}

struct Run<'a> {
    code: &'a [bpf_insn],
    tables: &'a [Table],
    /// Where it begins, and its length.
    frame: (u64, usize),
    /// Where that of the first function begins; the others' follow.
    stack: u64,
    jiffies: u64,
    footprint: Footprint,
    touched: BTreeSet<(usize, u64)>,
}

impl Run<'_> {
    fn finish(mut self) -> Result<(u64, Footprint)> {
        let answer = self.call(0, [CONTEXT, 0, 0, 0, 0], 0)?;
        for (number, _) in &self.touched {
            let name = self.tables[*number].name.clone();
            *self.footprint.lines.entry(name).or_default() += 1;
        }
        Ok((answer, self.footprint))
    }

    /// Runs a function from its first instruction to its end.
    fn call(&mut self, at: usize, arguments: [u64; 5], depth: usize) -> Result<u64> {
        ensure!(depth < CALLS, "functions call each other {depth} deep");
        let mut registers = [0u64; 11];
        registers[1..6].copy_from_slice(&arguments);
        registers[10] = self.stack + (STACK * (depth + 1)) as u64;
        let mut at = at;
        loop {
            let instruction = *self.code.get(at).context("the program runs past its end")?;
            self.footprint.instructions += 1;
            ensure!(self.footprint.instructions < MOST, "the program does not end");
            at += 1;
            let (to, from) = (
                usize::from(instruction.dst_reg()),
                usize::from(instruction.src_reg()),
            );
            let immediate = i64::from(instruction.imm) as u64;
            let is_register = instruction.code & 8 != 0;
            match instruction.code & 7 {
                // BPF_LD: a constant of 64 bits, in two instructions.
                0 => {
                    let upper = self.code.get(at).context("half a constant")?.imm;
                    at += 1;
                    let lower = instruction.imm;
                    registers[to] = match from {
                        1 => MAP | u64::from(lower as u32),
                        2 => self.tables[lower as usize].base() + u64::from(upper as u32),
                        _ => u64::from(upper as u32) << 32 | u64::from(lower as u32),
                    };
                }
                // BPF_LDX.
                1 => {
                    let address = registers[from].wrapping_add_signed(instruction.off.into());
                    let value = self.load(address, size_of_access(instruction.code))?;
                    registers[to] = match instruction.code >> 5 {
                        3 => value,
                        4 => extended(value, size_of_access(instruction.code)),
                        mode => bail!("a load of mode {mode}"),
                    };
                }
                // BPF_ST, BPF_STX.
                class @ (2 | 3) => {
                    let address = registers[to].wrapping_add_signed(instruction.off.into());
                    let size = size_of_access(instruction.code);
                    if class == 3 && instruction.code >> 5 == 6 {
                        self.atomic(&mut registers, instruction, address)?;
                    } else {
                        let value = if class == 2 { immediate } else { registers[from] };
                        self.store(address, size, value)?;
                    }
                }
                // BPF_ALU, BPF_ALU64.
                class @ (4 | 7) => {
                    let operand = if is_register { registers[from] } else { immediate };
                    registers[to] = arithmetic(instruction, class == 7, registers[to], operand)?;
                }
                // BPF_JMP, BPF_JMP32.
                class => match instruction.code >> 4 {
                    0 => {
                        let by = if class == 6 {
                            instruction.imm
                        } else {
                            instruction.off.into()
                        };
                        at = at.wrapping_add_signed(by as isize);
                    }
                    8 if from == 1 => {
                        let function = at.wrapping_add_signed(instruction.imm as isize);
                        let arguments = std::array::from_fn(|number| registers[1 + number]);
                        registers[0] = self.call(function, arguments, depth + 1)?;
                    }
                    8 => registers[0] = self.help(instruction.imm, &registers)?,
                    9 => return Ok(registers[0]),
                    condition => {
                        let operand = if is_register { registers[from] } else { immediate };
                        if holds(condition, class == 5, registers[to], operand)? {
                            at = at.wrapping_add_signed(isize::from(instruction.off));
                        }
                    }
                },
            }
        }
    }

    fn help(&mut self, number: i32, registers: &[u64; 11]) -> Result<u64> {
        if number != helper::MAP_LOOKUP_ELEM {
            *self.footprint.helpers.entry(number).or_default() += 1;
        }
        match number {
            helper::MAP_LOOKUP_ELEM => {
                let tables = self.tables;
                let table = tables.get((registers[1] ^ MAP) as usize).context("no such map")?;
                *self.footprint.lookups.entry(table.name.clone()).or_default() += 1;
                if !table.is_array {
                    bail!("a look-up in {}, which is no array", table.name);
                }
                let index = self.load(registers[2], 4)?;
                Ok(if index < table.rows {
                    table.base() + index * table.stride
                } else {
                    0
                })
            }
            helper::JIFFIES64 => Ok(self.jiffies),
            other => bail!("the program calls helper {other}"),
        }
    }

    /// 64-bit compare-and-swap, exchange, and fetch-and-add.
    fn atomic(&mut self, registers: &mut [u64; 11], instruction: bpf_insn, address: u64) -> Result<()> {
        let from = usize::from(instruction.src_reg());
        ensure!(
            size_of_access(instruction.code) == 8,
            "an atomic operation on less than 64 bits"
        );
        let before = self.load(address, 8)?;
        match instruction.imm {
            0xf1 => {
                if before == registers[0] {
                    self.store(address, 8, registers[from])?;
                }
                registers[0] = before;
            }
            0 | 1 => {
                self.store(address, 8, before.wrapping_add(registers[from]))?;
                if instruction.imm == 1 {
                    registers[from] = before;
                }
            }
            other => bail!("atomic operation {other:#x}"),
        }
        Ok(())
    }

    fn load(&mut self, address: u64, size: usize) -> Result<u64> {
        if (CONTEXT..CONTEXT + 24).contains(&address) {
            let (start, length) = self.frame;
            // `struct xdp_md`: two pointers, and the interface.
            return Ok(match address - CONTEXT {
                0 | 8 => start,
                4 => start + length as u64,
                12 => LOOPBACK.into(),
                _ => 0,
            });
        }
        self.check(address, size)?;
        let mut bytes = [0; 8];
        // SAFETY: `check` has found all of it within memory that lives as long as `self`; rows of maps may change
        // under the read, as they may under the kernel's.
        unsafe { ptr::copy_nonoverlapping(place(address), bytes.as_mut_ptr(), size) };
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&mut self, address: u64, size: usize, value: u64) -> Result<()> {
        self.check(address, size)?;
        // SAFETY: as for `load`; nobody else has a reference to what is no map.
        unsafe { ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), place(address), size) };
        Ok(())
    }

    /// Notes what is touched, and refuses what is nobody's.
    fn check(&mut self, address: u64, size: usize) -> Result<()> {
        let within =
            |base: u64, length: usize| address >= base && address + size as u64 <= base + length as u64;
        let (frame, length) = self.frame;
        if within(frame, length) || within(self.stack, STACK * CALLS) {
            return Ok(());
        }
        let found = self
            .tables
            .iter()
            .position(|table| within(table.base(), (table.rows * table.stride) as usize));
        let number = found.with_context(|| format!("an access to {address:#x}"))?;
        self.touched
            .insert((number, (address - self.tables[number].base()) / 64));
        Ok(())
    }
}

#[expect(clippy::cast_possible_truncation, reason = "an address of this very program")]
fn place(address: u64) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address as usize)
}

fn size_of_access(code: u8) -> usize {
    match code & 0x18 {
        0x00 => 4,
        0x08 => 2,
        0x10 => 1,
        _ => 8,
    }
}

fn extended(value: u64, size: usize) -> u64 {
    let unused = 64 - 8 * size as u32;
    ((value << unused).cast_signed() >> unused).cast_unsigned()
}

fn arithmetic(instruction: bpf_insn, is_wide: bool, value: u64, operand: u64) -> Result<u64> {
    let narrow = |value: u64| if is_wide { value } else { value & 0xffff_ffff };
    let (value, operand) = (narrow(value), narrow(operand));
    let bits = if is_wide { 63 } else { 31 };
    let result = match instruction.code >> 4 {
        0x0 => value.wrapping_add(operand),
        0x1 => value.wrapping_sub(operand),
        0x2 => value.wrapping_mul(operand),
        0x3 => value.checked_div(operand).unwrap_or(0),
        0x4 => value | operand,
        0x5 => value & operand,
        0x6 => value << (operand & bits),
        0x7 => value >> (operand & bits),
        0x8 => value.wrapping_neg(),
        0x9 => value.checked_rem(operand).unwrap_or(value),
        0xa => value ^ operand,
        0xb if instruction.off != 0 => extended(operand, instruction.off as usize / 8),
        0xb => operand,
        0xc if is_wide => (value.cast_signed() >> (operand & bits)).cast_unsigned(),
        0xc => (extended(value, 4).cast_signed() >> (operand & bits)).cast_unsigned(),
        // To big-endian, or, in the 64-bit class, whatever it was.
        0xd => {
            let swapped = value.swap_bytes() >> (64 - instruction.imm);
            return Ok(if instruction.code & 8 != 0 || is_wide {
                swapped
            } else {
                value & (u64::MAX >> (64 - instruction.imm))
            });
        }
        other => bail!("arithmetic operation {other:#x}"),
    };
    Ok(narrow(result))
}

fn holds(condition: u8, is_wide: bool, value: u64, operand: u64) -> Result<bool> {
    let narrow = |value: u64| if is_wide { value } else { value & 0xffff_ffff };
    let signed = |value: u64| if is_wide { value } else { extended(value, 4) }.cast_signed();
    let (value, operand) = (narrow(value), narrow(operand));
    let (left, right) = (signed(value), signed(operand));
    Ok(match condition {
        0x1 => value == operand,
        0x2 => value > operand,
        0x3 => value >= operand,
        0x4 => value & operand != 0,
        0x5 => value != operand,
        0x6 => left > right,
        0x7 => left >= right,
        0xa => value < operand,
        0xb => value <= operand,
        0xc => left < right,
        0xd => left <= right,
        other => bail!("condition {other:#x}"),
    })
}
