{{/* What a schema cannot say. Fails with the name of the value; prints nothing. */}}
{{- define "offshoot.checks" -}}
{{- $values := .Values -}}
{{- /* Values that other charts have, or that are computed here: what to use instead. */ -}}
{{- $removed := dict
    "replicaCount" "coordinator.replicas, target.replicas and draft.replicas"
    "serviceAccount" "nothing: pods use no account and have no token, but for coordinators with discovery: endpointslice, whose account the chart makes"
    "models" "target.model, draft.model and qualifier.model" -}}
{{- range $key, $instead := $removed -}}
{{- if hasKey $values $key }}{{ fail (printf "%s: there is no such value (any more); use %s" $key $instead) }}{{ end -}}
{{- end -}}
{{- $gone := dict
    "replicaCount" "replicas"
    "terminationGracePeriodSeconds" "stopDelay and drainGrace, of which it is computed"
    "args" "extraArgs"
    "extraFlags" "extraArgs"
    "modelPath" "model" -}}
{{- $flags := dict
    "--host" "nothing: it is fixed" "--port" "nothing: it is fixed" "--admin" "nothing: it is fixed"
    "--allow-plaintext-bind" "tls.enabled" "--role" "nothing: it is fixed"
    "--model" "model" "--device" "device" "--kv-mib" "kvMib" "--tokenizer" "coordinator.tokenizer"
    "--stop-delay" "stopDelay, which the grace period follows" "--drain-grace-s" "drainGrace, which the grace period follows"
    "--failover-wait" "coordinator.failoverWait" "--workers-dns" "discovery" "--workers-endpointslice" "discovery"
    "--tls-cert" "tls.enabled" "--tls-key" "tls.enabled" "--tls-ca" "tls.enabled"
    "--otlp-traces-endpoint" "tracing.endpoint" "--trace-sample-ratio" "tracing.sampleRatio" -}}
{{- range $role := list "coordinator" "target" "qualifier" "draft" -}}
{{- $own := index $values $role -}}
{{- range $key, $instead := $gone -}}
{{- if hasKey $own $key }}{{ fail (printf "%s.%s: there is no such value (any more); use %s" $role $key $instead) }}{{ end -}}
{{- end -}}
{{- range $own.extraArgs -}}
{{- $flag := (splitn "=" 2 .)._0 -}}
{{- if hasKey $flags $flag }}{{ fail (printf "%s.extraArgs: %s is set by the chart; use %s" $role $flag (get $flags $flag)) }}{{ end -}}
{{- end -}}
{{- range $flag, $instead := $flags -}}
{{- $variable := printf "OFFSHOOT_%s" ($flag | trimPrefix "--" | trimSuffix "-s" | upper | replace "-" "_") -}}
{{- if hasKey $own.env $variable }}{{ fail (printf "%s.env: %s is set by the chart; use %s" $role $variable $instead) }}{{ end -}}
{{- end -}}
{{- if and (not (eq $role "coordinator")) (or (eq $role "target") $own.enabled) -}}
{{- if not $own.model }}{{ fail (printf "%s.model: say where the model is: a path in the image, pvc://, oci:// or hf://" $role) }}{{ end -}}
{{- if gt (int $own.gpu.count) 1 }}{{ fail (printf "%s.gpu.count: a worker computes on one GPU; raise %s.replicas for more" $role $role) }}{{ end -}}
{{- if and $own.affinity $own.gpu.products }}{{ fail (printf "%s.gpu.products: %s.affinity is said too; put the products there" $role $role) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if not $values.image.repository }}{{ fail "image.repository: say which image; no registry has one of Offshoot" }}{{ end -}}
{{- if and $values.tls.certManager.enabled (not $values.tls.enabled) }}{{ fail "tls.certManager.enabled: needs tls.enabled" }}{{ end -}}
{{- if and $values.tls.certManager.enabled (not $values.tls.certManager.issuer.name) }}{{ fail "tls.certManager.issuer.name: say which issuer" }}{{ end -}}
{{- $keda := eq $values.autoscaling.kind "ScaledObject" -}}
{{- if $values.autoscaling.enabled -}}
{{- if not $values.draft.enabled }}{{ fail "autoscaling.enabled: there are no drafts to scale (draft.enabled)" }}{{ end -}}
{{- if ne $values.workload.kind "Deployment" }}{{ fail "autoscaling.enabled: workload.kind DisaggregatedSet has replicas of its own" }}{{ end -}}
{{- if gt (int $values.autoscaling.draft.min) (int $values.autoscaling.draft.max) }}{{ fail "autoscaling.draft.min: greater than max" }}{{ end -}}
{{- if gt (int $values.autoscaling.coordinator.min) (int $values.autoscaling.coordinator.max) }}{{ fail "autoscaling.coordinator.min: greater than max" }}{{ end -}}
{{- if and $keda (not $values.autoscaling.keda.serverAddress) }}{{ fail "autoscaling.keda.serverAddress: say where Prometheus is" }}{{ end -}}
{{- end -}}
{{- if and $values.autoscaling.keda.scaleToZero (not (and $values.autoscaling.enabled $keda)) }}{{ fail "autoscaling.keda.scaleToZero: needs autoscaling.enabled and autoscaling.kind ScaledObject" }}{{ end -}}
{{- if and (ne $values.workload.kind "Deployment") (not $values.draft.enabled) }}{{ fail "workload.kind: a DisaggregatedSet has two roles at least (draft.enabled)" }}{{ end -}}
{{- end -}}
