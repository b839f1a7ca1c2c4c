//! Rotary position embedding, as `config.json` says it.

use crate::config::fields::Fields;
use crate::config::{MOST_DIMENSION, Rope, RopeScaling};

/// The rotary embedding of a model that has one for all layers.
pub(crate) fn rope(fields: &Fields, theta: f32) -> Result<Rope, String> {
    let all = settings(fields)?;
    match &all {
        Some(all) if differs_by_kind(all) => Err(format!(
            "{}{} differs by kind of layer, which is not supported",
            all.path,
            all.object.keys().next().map_or("", String::as_str)
        )),
        all => with_settings(all.as_ref(), fields, theta),
    }
}

/// The rotary embedding of layers of one kind, where the file has one for each kind.
pub(crate) fn rope_of_kind(
    fields: &Fields,
    kind: &'static str,
    theta: f32,
) -> Result<Option<Rope>, String> {
    let Some(all) = settings(fields)?.filter(differs_by_kind) else {
        return Ok(None);
    };
    let path = all.path;
    let object = all.get(kind)?;
    let object = object.ok_or_else(|| format!("{path}{kind} is missing"))?;
    let own = Fields { object, path };
    with_settings(Some(&own), &own, theta).map(Some)
}

fn differs_by_kind(all: &Fields) -> bool {
    all.object.values().any(serde_json::Value::is_object)
}

/// Older files have `rope_theta` beside `rope_scaling`, newer ones both in `rope_parameters`.
fn settings(fields: &Fields) -> Result<Option<Fields>, String> {
    let (older, newer) = (
        fields.object("rope_scaling")?,
        fields.object("rope_parameters")?,
    );
    match (older, newer) {
        (Some(older), Some(newer)) => merged(older, newer).map(Some),
        (older, newer) => Ok(newer.or(older)),
    }
}

/// What both objects say, which must not contradict each other.
fn merged(older: Fields, newer: Fields) -> Result<Fields, String> {
    let mut all = newer;
    for (name, value) in older.object {
        let other = all.object.get(&name).filter(|other| !other.is_null());
        match other {
            Some(other) if !value.is_null() && *other != value => {
                return Err(format!(
                    "rope_scaling.{name} and rope_parameters.{name} differ; remove one"
                ));
            }
            Some(_) => {}
            None => {
                all.object.insert(name, value);
            }
        }
    }
    Ok(all)
}

fn with_settings(raw: Option<&Fields>, whole: &Fields, default: f32) -> Result<Rope, String> {
    let within = |name: &str| match raw {
        Some(raw) => raw.get::<f32>(name),
        None => Ok(None),
    };
    let theta = match (whole.get("rope_theta")?, within("rope_theta")?) {
        (Some(outer), Some(inner)) if outer != inner => {
            return Err(format!(
                "rope_theta is {outer} in one place and {inner} in another; remove one"
            ));
        }
        (outer, inner) => outer.or(inner).unwrap_or(default),
    };
    if !(theta.is_finite() && theta >= 1.0) {
        return Err(format!("rope_theta is {theta}, it has to be at least 1"));
    }
    let scaling = match raw {
        Some(raw) => scaling(raw, whole)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, scaling })
}

/// The kind of scaling is called `type` in the oldest files, and some have it under both names.
fn scaling(raw: &Fields, whole: &Fields) -> Result<RopeScaling, String> {
    let path = raw.path;
    let kind: Option<String> = match (raw.get("rope_type")?, raw.get::<String>("type")?) {
        (Some(newer), Some(older)) if newer != older => {
            return Err(format!(
                "{path}rope_type is {newer:?} and {path}type is {older:?}; remove one"
            ));
        }
        (newer, older) => newer.or(older),
    };
    let required = |name: &str| {
        let missing = || format!("{path}{name} has to be a positive number");
        raw.positive(name)?.ok_or_else(missing)
    };
    match kind.as_deref() {
        // A factor without a kind would be ignored, and the model would be another one.
        None if raw.get("factor")?.is_some_and(|factor: f32| factor != 1.0) => Err(format!(
            "{path}factor is there without a rope_type; add \"llama3\" if it is that kind"
        )),
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(match required("factor")? {
            1.0 => RopeScaling::None,
            factor => RopeScaling::Linear { factor },
        }),
        Some("llama3") => {
            let (low, high) = (required("low_freq_factor")?, required("high_freq_factor")?);
            if low >= high {
                return Err(format!(
                    "{path}low_freq_factor has to be below high_freq_factor"
                ));
            }
            let name = "original_max_position_embeddings";
            let original = match raw.count(name)? {
                Some(original) => Some(original),
                None => whole.count(name)?,
            };
            Ok(RopeScaling::Llama3 {
                factor: required("factor")?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions: original
                    .filter(|positions| (1..=MOST_DIMENSION).contains(positions))
                    .ok_or_else(|| format!("{path}{name} has to be a positive number"))?,
            })
        }
        Some(other) => Err(format!(
            "{path}rope_type {other:?} is not supported, \"default\", \"linear\" and \"llama3\" are"
        )),
    }
}
