{{/* The template of a role's pods. Takes a list of the root and the role. */}}
{{- define "offshoot.pod" -}}
{{- $root := index . 0 -}}
{{- $role := index . 1 -}}
{{- $values := index $root.Values $role -}}
{{- $name := include "offshoot.name" $root -}}
{{- $coordinates := eq $role "coordinator" -}}
{{- $source := ternary (default $root.Values.target.model $root.Values.coordinator.tokenizer) $values.model $coordinates -}}
{{- $gpu := default (dict) $values.gpu -}}
{{- $onGpu := gt (int $gpu.count) 0 -}}
{{- $asksCluster := and $coordinates (eq $root.Values.discovery "endpointslice") -}}
metadata:
  labels:
    {{- include "offshoot.selector" (list $root $role) | nindent 4 }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    prometheus.io/scrape: "true"
    prometheus.io/port: "9090"
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- if $coordinates }}
  # Said in any case: where a name is taken out of a manifest, the cluster keeps the old one (in the field serviceAccount).
  serviceAccountName: {{ ternary (printf "%s-coordinator" $name) "default" $asksCluster }}
  {{- end }}
  automountServiceAccountToken: {{ $asksCluster }}
  enableServiceLinks: false
  # Stop delay + drain + margin.
  terminationGracePeriodSeconds: {{ include "offshoot.grace" $values }}
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    seccompProfile: {type: RuntimeDefault}
  topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "offshoot.selector" (list $root $role) | nindent 8 }}
  {{- if $coordinates }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "offshoot.selector" (list $root $role) | nindent 8 }}
  {{- end }}
  {{- $nodes := merge (dict) $values.nodeSelector (ternary (dict "nvidia.com/gpu.present" "true") (dict) $onGpu) }}
  {{- with $nodes }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or $values.affinity (and $onGpu $gpu.products) }}
  affinity:
    {{- if $values.affinity }}
    {{- toYaml $values.affinity | nindent 4 }}
    {{- else }}
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
        - matchExpressions:
          - key: nvidia.com/gpu.product
            operator: In
            values:
              {{- toYaml $gpu.products | nindent 14 }}
    {{- end }}
  {{- end }}
  {{- if or $values.tolerations $onGpu }}
  tolerations:
  {{- if $onGpu }}
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with $values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- end }}
  containers:
  - name: offshoot
    image: {{ include "offshoot.image" (list $root $values) }}
    {{- with $root.Values.image.pullPolicy }}
    imagePullPolicy: {{ . }}
    {{- end }}
    args:
    - {{ get (dict "coordinator" "coordinator" "target" "target-worker" "qualifier" "target-worker" "draft" "draft-worker") $role }}
    {{- with $values.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    env:
    - {name: OFFSHOOT_HOST, value: 0.0.0.0}
    - {name: OFFSHOOT_PORT, value: {{ ternary "7000" "7001" $coordinates | quote }}}
    - {name: OFFSHOOT_ADMIN, value: "0.0.0.0:9090"}
    # Without tls; with it, for the admin port alone.
    - {name: OFFSHOOT_ALLOW_PLAINTEXT_BIND, value: "true"}
    - {name: OFFSHOOT_LOG_FORMAT, value: json}
    {{- if $coordinates }}
    - {name: OFFSHOOT_TOKENIZER, value: {{ include "offshoot.model.path" $source | quote }}}
    {{- $names := list }}
    {{- range fromJsonArray (include "offshoot.workers" $root) }}
    {{- $names = append $names (printf "%s-%s:%s" $name . (ternary "grpc" "7001" $asksCluster)) }}
    {{- end }}
    - {name: {{ ternary "OFFSHOOT_WORKERS_ENDPOINTSLICE" "OFFSHOOT_WORKERS_DNS" $asksCluster }}, value: {{ join "," $names | quote }}}
    - {name: OFFSHOOT_FAILOVER_WAIT, value: {{ $values.failoverWait | quote }}}
    {{- else }}
    {{- if eq $role "qualifier" }}
    - {name: OFFSHOOT_ROLE, value: qualifier}
    {{- end }}
    - {name: OFFSHOOT_MODEL, value: {{ include "offshoot.model.path" $source | quote }}}
    {{- with default (ternary "cuda:0" "" $onGpu) $values.device }}
    - {name: OFFSHOOT_DEVICE, value: {{ . | quote }}}
    {{- end }}
    {{- if $onGpu }}
    - {name: NVIDIA_DRIVER_CAPABILITIES, value: "compute,utility"}
    {{- end }}
    {{- with $values.kvMib }}
    - {name: OFFSHOOT_KV_MIB, value: {{ . | int | quote }}}
    {{- end }}
    {{- end }}
    - {name: OFFSHOOT_STOP_DELAY, value: {{ $values.stopDelay | quote }}}
    - {name: OFFSHOOT_DRAIN_GRACE, value: {{ $values.drainGrace | quote }}}
    {{- include "offshoot.model.hub" (list $root $source) | nindent 4 }}
    {{- with $root.Values.tracing.endpoint }}
    - {name: OFFSHOOT_OTLP_TRACES_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    {{- if and $root.Values.tracing.endpoint (not (kindIs "invalid" $root.Values.tracing.sampleRatio)) }}
    - {name: OFFSHOOT_TRACE_SAMPLE_RATIO, value: {{ $root.Values.tracing.sampleRatio | quote }}}
    {{- end }}
    {{- if $root.Values.tls.enabled }}
    - {name: OFFSHOOT_TLS_CERT, value: /tls/tls.crt}
    - {name: OFFSHOOT_TLS_KEY, value: /tls/tls.key}
    - {name: OFFSHOOT_TLS_CA, value: /tls/ca.crt}
    {{- end }}
    {{- range $key, $value := $values.env }}
    - {name: {{ $key }}, value: {{ $value | quote }}}
    {{- end }}
    ports:
    - {name: grpc, containerPort: {{ ternary 7000 7001 $coordinates }}}
    - {name: admin, containerPort: 9090}
    startupProbe:
      httpGet: {path: /startup, port: admin}
      periodSeconds: 1
      timeoutSeconds: 3
      failureThreshold: {{ $values.startupSeconds }}
    livenessProbe:
      httpGet: {path: /live, port: admin}
      periodSeconds: 10
      timeoutSeconds: 6
      failureThreshold: 3
    readinessProbe:
      httpGet: {path: /ready, port: admin}
      periodSeconds: 2
      timeoutSeconds: 3
      failureThreshold: 2
    resources:
      {{- $resources := deepCopy $values.resources }}
      {{- if $onGpu }}
      {{- $resources = mergeOverwrite $resources (dict "limits" (dict $gpu.resource "1")) }}
      {{- end }}
      {{- toYaml $resources | nindent 6 }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    {{- $volume := include "offshoot.model.volume" (list $root $source) }}
    {{- if or $volume $root.Values.tls.enabled }}
    volumeMounts:
    {{- if $volume }}
    - {name: models, mountPath: /models, readOnly: {{ not (hasPrefix "hf://" $source) }}}
    {{- end }}
    {{- if $root.Values.tls.enabled }}
    - {name: tls, mountPath: /tls, readOnly: true}
    {{- end }}
  volumes:
    {{- $volume | nindent 2 }}
    {{- if $root.Values.tls.enabled }}
  - name: tls
    secret: {secretName: {{ $name }}-{{ $role }}-tls, defaultMode: 0440}
    {{- end }}
    {{- end }}
{{- end -}}
