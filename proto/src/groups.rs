//! Sibling groups and acceptance rules on the wire, both ways.

use decode::rule::Tolerance;
use decode::{Drawn, Rule, Surprisal};
use speculation::limits::{MAX_GROUPS_PER_UPDATE, MAX_NODES_PER_UPDATE};
use speculation::message::NodeNumber;

use crate::inward::{WireError, at_most, range};
use crate::v1;

/// Groups lie flat in the message that holds the nodes: its sub-messages could not be counted before they are decoded.
pub(crate) fn put(groups: Vec<(NodeNumber, Drawn)>, nodes: &mut v1::Nodes) {
    for (parent, drawn) in groups {
        nodes.group_parents.push(parent);
        // Neither is above 32.
        nodes.group_sizes.push(drawn.support().len() as u8);
        nodes.group_draws.push(drawn.order().len() as u8);
        for (id, weight) in drawn.support() {
            nodes.group_ids.push(id);
            nodes.group_weights.push(weight.into());
        }
        nodes.group_order.extend_from_slice(drawn.order());
    }
}

/// # Errors
/// When the arrays do not fit together, or one of the groups could not have been drawn.
pub(crate) fn take(nodes: &v1::Nodes) -> Result<Vec<(NodeNumber, Drawn)>, WireError> {
    let count = nodes.group_parents.len();
    at_most(
        "nodes.group_parents",
        count,
        MAX_GROUPS_PER_UPDATE,
        "at most 64 groups",
    )?;
    let sum = |sizes: &[u8]| sizes.iter().map(|&size| usize::from(size)).sum::<usize>();
    let is_whole = nodes.group_sizes.len() == count
        && nodes.group_draws.len() == count
        && nodes.group_ids.len() == sum(&nodes.group_sizes)
        && nodes.group_weights.len() == nodes.group_ids.len()
        && nodes.group_order.len() == sum(&nodes.group_draws);
    if !is_whole {
        let value = format!("{count} groups of other sizes");
        return Err(range(
            "nodes.group_sizes",
            value,
            "arrays that fit together",
        ));
    }
    let (mut ids, mut weights) = (&nodes.group_ids[..], &nodes.group_weights[..]);
    let mut order = &nodes.group_order[..];
    let mut groups = Vec::with_capacity(count);
    let sizes = nodes.group_sizes.iter().zip(&nodes.group_draws);
    for (&parent, (&size, &draws)) in nodes.group_parents.iter().zip(sizes) {
        let (own_ids, more_ids) = ids.split_at(size.into());
        let (own_weights, more_weights) = weights.split_at(size.into());
        let (own_order, more_order) = order.split_at(draws.into());
        (ids, weights, order) = (more_ids, more_weights, more_order);
        let narrow = own_weights.iter().map(|&weight| u16::try_from(weight).ok());
        let drawn = narrow
            .collect::<Option<Vec<u16>>>()
            .and_then(|weights| Drawn::from_parts(own_ids.to_vec(), weights, own_order.to_vec()));
        let Some(drawn) = drawn else {
            let value = format!("{size} tokens and {draws} draws behind node {parent}");
            let allowed = "1 to 32 ascending ids, weights from 1 to 65535, each drawn at most once";
            return Err(range("nodes.groups", value, allowed));
        };
        groups.push((parent, drawn));
    }
    Ok(groups)
}

pub(crate) fn put_surprisals(all: &[(NodeNumber, Surprisal)], nodes: &mut v1::Nodes) {
    nodes.surprisal_ids = all.iter().map(|&(id, _)| id).collect();
    nodes.surprisals = all.iter().map(|&(_, Surprisal(of))| of.into()).collect();
}

/// # Errors
/// When there are more than nodes in a message, not as many as ids, or one is out of range.
pub(crate) fn take_surprisals(
    nodes: &v1::Nodes,
) -> Result<Vec<(NodeNumber, Surprisal)>, WireError> {
    let (ids, all) = (&nodes.surprisal_ids, &nodes.surprisals);
    at_most(
        "nodes.surprisal_ids",
        ids.len(),
        MAX_NODES_PER_UPDATE,
        "at most 512 nodes",
    )?;
    if ids.len() != all.len() {
        let value = format!("{} and {}", ids.len(), all.len());
        return Err(range("nodes.surprisals", value, "arrays of equal length"));
    }
    Ok(ids.iter().copied().zip(surprisals(all)?).collect())
}

/// # Errors
/// When one is out of range.
pub(crate) fn surprisals(all: &[u32]) -> Result<Vec<Surprisal>, WireError> {
    let narrow = all.iter().map(|&of| {
        let narrow = u16::try_from(of).map_err(|_| range("surprisals", of, "0..=65535"));
        narrow.map(Surprisal)
    });
    narrow.collect()
}

/// A rule to the wire.
#[must_use]
pub fn acceptance(rule: Rule) -> Option<v1::Acceptance> {
    let (named, tolerance) = match rule {
        Rule::Exact => return None,
        Rule::Rejection => (v1::acceptance::Rule::Rejection, None),
        Rule::Fuzzy(tolerance) => (v1::acceptance::Rule::Fuzzy, Some(tolerance)),
    };
    Some(v1::Acceptance {
        rule: named.into(),
        tau_q: tolerance.map(|tolerance| tolerance.draft),
        tau_t: tolerance.map(|tolerance| tolerance.qualifier),
    })
}

/// A rule from the wire. Whether its tolerances are in range and the strategy supports it is checked where the strategy is
/// looked up.
///
/// # Errors
/// When the rule is unknown here, or a tolerance was given to a rule that has none.
pub fn rule(acceptance: Option<v1::Acceptance>) -> Result<Rule, WireError> {
    let Some(acceptance) = acceptance else {
        return Ok(Rule::Exact);
    };
    let known = v1::acceptance::Rule::try_from(acceptance.rule);
    let known = known.map_err(|_| {
        range(
            "acceptance.rule",
            acceptance.rule,
            "exact, rejection or fuzzy",
        )
    })?;
    let tolerances = (acceptance.tau_q, acceptance.tau_t);
    let rule = match known {
        v1::acceptance::Rule::Exact => Rule::Exact,
        v1::acceptance::Rule::Rejection => Rule::Rejection,
        v1::acceptance::Rule::Fuzzy => {
            let default = Tolerance::default();
            return Ok(Rule::Fuzzy(Tolerance {
                draft: tolerances.0.unwrap_or(default.draft),
                qualifier: tolerances.1.unwrap_or(default.qualifier),
            }));
        }
    };
    if let Some(given) = tolerances.0.or(tolerances.1) {
        return Err(range("acceptance.tau", given, "nothing, except with fuzzy"));
    }
    Ok(rule)
}
