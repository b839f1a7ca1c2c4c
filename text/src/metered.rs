//! A bound on the time and memory of a template, whatever it says.
//!
//! The library counts a template's instructions, and most of what they make, against its fuel. What it does not count is a walk
//! through values inside of values: a list of a list of lists, each named ten times, takes a line each to make and the age of the
//! universe to write out, to compare or to search. So instructions that walk are replaced by calls that weigh first what they are
//! about to walk through, and take its weight from the fuel.
//!
//! Values may also lie so deep inside of each other that to drop them takes a long way down the stack. Templates are rendered on a
//! stack that is long enough for all that their fuel can make.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::thread;

use minijinja::machinery::{
    CompiledTemplate, Instruction, Instructions, TemplateConfig, Token, eval, make_string_output,
    tokenize,
};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};

use crate::guard::guarded;

/// Instructions that a template may take for one conversation.
const FUEL: u64 = 2_000_000;
/// How many bytes of text it may make for one of them: 128 MB in all.
pub(crate) const BYTES_OF_FUEL: u64 = 64;
/// How many values may be walked through for one of them.
const VALUES_OF_FUEL: u64 = 2;
/// How deep values may lie inside of each other if they are walked through. What anybody writes is a few levels deep.
const DEEPEST: usize = 64;
/// The stack of a template. The deepest nesting that fuel can make, a level for seven instructions, takes a third of it to drop. It
/// is address space; memory is taken as far as it is used.
const STACK: usize = 256 << 20;

/// The name of the template in messages.
const NAME: &str = "chat template";

macro_rules! calls {
    ($mark:literal: $($name:literal)*) => {
        [$(($name, concat!($mark, $name))),*]
    };
}

/// Filters that walk through what is in their arguments, and what is called in their place.
const FILTERS: [(&str, &str); 33] = calls!("filter ": "escape" "e" "lower" "upper" "title" "capitalize" "replace" "dictsort"
    "reverse" "trim" "join" "split" "lines" "min" "max" "sort" "string" "batch" "slice" "sum" "indent" "select" "reject"
    "selectattr" "rejectattr" "map" "groupby" "unique" "chain" "zip" "pprint" "format" "tojson");
/// Tests that do.
const TESTS: [(&str, &str); 24] = calls!("test ": "eq" "equalto" "==" "ne" "!=" "lt" "lessthan" "<" "le" "<=" "gt" "greaterthan"
    ">" "ge" ">=" "in" "startingwith" "endingwith" "lower" "upper" "sameas" "divisibleby" "odd" "even");
/// Operators that do.
const CONCAT: &str = "operator ~";
const IN: &str = "operator in";
const ITEM: &str = "operator []";
const MAP: &str = "operator {}";
type Compare = fn(&Value, &Value) -> bool;
const COMPARE: [(&str, Compare); 6] = [
    ("operator ==", |a, b| a == b),
    ("operator !=", |a, b| a != b),
    ("operator <", |a, b| a < b),
    ("operator <=", |a, b| a <= b),
    ("operator >", |a, b| a > b),
    ("operator >=", |a, b| a >= b),
];

thread_local! {
    /// The namespaces that the template of this thread has made.
    static MADE: RefCell<Vec<Value>> = const { RefCell::new(Vec::new()) };
}

/// Takes everything out of the namespaces that a template has made. One that holds itself would never be dropped.
fn empty_namespaces(instructions: &Instructions<'_>) -> Result<(), Error> {
    let mut source = "{% for one in all %}".to_owned();
    let mut at = 0;
    while let Some(instruction) = instructions.get(at) {
        at += 1;
        if let Instruction::SetAttr(name) = instruction {
            source.push_str(&format!("{{% set one.{name} = none %}}"));
        }
    }
    source.push_str("{% endfor %}");
    let (all, environment) = (Value::from(MADE.take()), Environment::new());
    let emptying = CompiledTemplate::new(NAME, &source, &config()?)?;
    let (mut text, blocks) = (String::new(), &emptying.blocks);
    let mut out = make_string_output(&mut text);
    let root = minijinja::context! { all };
    eval(
        &environment,
        &emptying.instructions,
        root,
        blocks,
        &mut out,
        AutoEscape::None,
    )?;
    Ok(())
}

/// What renders templates within the bound.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    // It writes out everything that there is.
    environment.remove_global("debug");
    environment.set_unknown_method_callback(|state, value, method, args| {
        weigh(state, value)?;
        weigh_all(state, args)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.set_formatter(|out, state, value| {
        weigh(state, value)?;
        minijinja::escape_formatter(out, state, value)
    });
    environment.add_function("namespace", |defaults: Option<ValueOrKwargs>| {
        let made = minijinja::functions::namespace(defaults)?;
        MADE.with_borrow_mut(|all| all.push(made.clone()));
        Ok::<Value, Error>(made)
    });
    for (name, call) in FILTERS {
        environment.add_function(call, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            weigh_all(state, &args)?;
            state.apply_filter(name, &args)
        });
    }
    for (name, call) in TESTS {
        environment.add_function(call, move |state: &mut State, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            weigh_all(state, &args)?;
            state.perform_test(name, &args)
        });
    }
    for (call, compare) in COMPARE {
        environment.add_function(call, move |state: &State, a: Value, b: Value| {
            weigh_two(state, &a, &b).map(|()| compare(&a, &b))
        });
    }
    environment.add_function(IN, |state: &mut State, one: Value, all: Value| {
        weigh_two(state, &one, &all)?;
        state.perform_test("in", &[one, all])
    });
    environment.add_function(CONCAT, |state: &State, a: Value, b: Value| {
        weigh_two(state, &a, &b).map(|()| format!("{a}{b}"))
    });
    environment.add_function(ITEM, |state: &State, all: Value, key: Value| {
        weigh(state, &key)?;
        all.get_item(&key)
    });
    environment.add_function(MAP, |state: &State, pairs: Rest<Value>| {
        let (pairs, _) = pairs.as_chunks();
        pairs.iter().try_for_each(|[key, _]| weigh(state, key))?;
        let pairs = pairs
            .iter()
            .map(|[key, value]| (key.clone(), value.clone()));
        Ok::<Value, Error>(Value::from(pairs.collect::<BTreeMap<Value, Value>>()))
    });
    environment.add_global(ONE, 1);
    environment
}

fn weigh_all(state: &State, values: &[Value]) -> Result<(), Error> {
    values.iter().try_for_each(|value| weigh(state, value))
}

fn weigh_two(state: &State, a: &Value, b: &Value) -> Result<(), Error> {
    weigh(state, a)?;
    weigh(state, b)
}

/// Takes the fuel for a walk through a value and all that is in it.
pub(crate) fn weigh(state: &State, value: &Value) -> Result<(), Error> {
    let mut walk = Walk { state, values: 0 };
    walk.through(value, 0)
}

struct Walk<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    /// Values that were not paid for yet.
    values: u64,
}

impl Walk<'_, '_, '_> {
    fn through(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if let Some(text) = value.as_str() {
            return self.state.consume_fuel(text.len() as u64 / BYTES_OF_FUEL);
        }
        let is_map = match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => false,
            ValueKind::Map => true,
            _ => return Ok(()),
        };
        if depth == DEEPEST {
            let why = format!("values lie more than {DEEPEST} levels inside of each other");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
        for item in value.try_iter()? {
            self.values += 1;
            if self.values == VALUES_OF_FUEL {
                self.values = 0;
                self.state.consume_fuel(1)?;
            }
            if is_map {
                self.through(&value.get_item(&item)?, depth + 1)?;
            }
            self.through(&item, depth + 1)?;
        }
        Ok(())
    }
}

fn config() -> Result<TemplateConfig, Error> {
    let syntax_config = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    Ok(TemplateConfig {
        syntax_config,
        default_auto_escape: std::sync::Arc::new(|_| AutoEscape::None),
    })
}

/// What products are multiplied by, so that they are no constants.
const ONE: &str = "__one";

/// Prepares a template to be compiled. The compiler works out constants, and what it does with a list that is repeated a hundred
/// million times is counted nowhere, so what it multiplies must not be a constant.
pub(crate) fn prepare(source: &str) -> Result<String, Error> {
    let mut prepared = String::with_capacity(source.len());
    let mut done = 0;
    // In front of arguments it is no product.
    let mut is_product = false;
    for token in tokenize(source, false, config()?.syntax_config) {
        let (token, span) = token?;
        if matches!(token, Token::Mul) && is_product {
            let end = span.end_offset as usize;
            let product = source.get(done..end).filter(|part| part.ends_with('*'));
            prepared.push_str(product.ok_or_else(|| unsupported("a product so far behind"))?);
            prepared.push_str(&format!(" {ONE} *"));
            done = end;
        }
        is_product = !matches!(token, Token::ParenOpen | Token::Comma);
    }
    prepared.push_str(source.get(done..).unwrap_or_default());
    Ok(prepared)
}

/// Compiles a template that was prepared.
pub(crate) fn compile(source: &str) -> Result<CompiledTemplate<'_>, Error> {
    let mut compiled = CompiledTemplate::new(NAME, source, &config()?)?;
    meter(&mut compiled.instructions)?;
    Ok(compiled)
}

/// Puts calls that weigh in the place of instructions that walk.
fn meter(instructions: &mut Instructions<'_>) -> Result<(), Error> {
    let mut at = 0;
    while let Some(instruction) = instructions.get_mut(at) {
        at += 1;
        let two = |name| Instruction::CallFunction(name, Some(2));
        *instruction = match instruction {
            Instruction::Eq => two(COMPARE[0].0),
            Instruction::Ne => two(COMPARE[1].0),
            Instruction::Lt => two(COMPARE[2].0),
            Instruction::Lte => two(COMPARE[3].0),
            Instruction::Gt => two(COMPARE[4].0),
            Instruction::Gte => two(COMPARE[5].0),
            Instruction::StringConcat => two(CONCAT),
            Instruction::In => two(IN),
            Instruction::GetItem => two(ITEM),
            Instruction::BuildMap(pairs) => match u16::try_from(*pairs * 2) {
                Ok(values) => Instruction::CallFunction(MAP, Some(values)),
                Err(_) => return Err(unsupported("a map of so many values")),
            },
            Instruction::ApplyFilter(name, count, _) => match named(&FILTERS, name) {
                Some(call) => Instruction::CallFunction(call, *count),
                None => continue,
            },
            Instruction::PerformTest(name, count, _) => match named(&TESTS, name) {
                Some(call) => Instruction::CallFunction(call, *count),
                None => continue,
            },
            // It leaves one of the two behind, which a call cannot.
            Instruction::CompareAndPreserve(_) => {
                return Err(unsupported("a chain of comparisons"));
            }
            Instruction::CallMethod("changed", _) => return Err(unsupported("loop.changed")),
            _ => continue,
        };
    }
    Ok(())
}

fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::InvalidOperation,
        format!("{what} is not supported"),
    )
}

/// Names may have spaces in them.
fn named(calls: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    let name: String = name.split_ascii_whitespace().collect();
    let call = calls.iter().find(|(known, _)| *known == name);
    call.map(|(_, call)| *call)
}

/// Renders a template on a stack of its own.
pub(crate) fn render(
    environment: &Environment<'_>,
    source: &str,
    root: Value,
) -> Result<String, Error> {
    let work = || -> Result<String, Error> {
        let compiled = compile(source)?;
        let mut text = String::new();
        let mut out = make_string_output(&mut text);
        let (instructions, blocks) = (&compiled.instructions, &compiled.blocks);
        let done = eval(
            environment,
            instructions,
            root,
            blocks,
            &mut out,
            AutoEscape::None,
        )
        .map(drop);
        drop(out);
        empty_namespaces(instructions)?;
        done.map(|()| text)
    };
    thread::scope(|scope| {
        let builder = thread::Builder::new()
            .name("template".to_owned())
            .stack_size(STACK);
        let failed = |why: String| Error::new(ErrorKind::InvalidOperation, why);
        let thread = builder
            .spawn_scoped(scope, || guarded(work))
            .map_err(|error| failed(format!("there is no thread for it: {error}")))?;
        let done = thread
            .join()
            .unwrap_or_else(|_| Err("the thread ended".to_owned()));
        done.unwrap_or_else(|why| Err(failed(why)))
    })
}
