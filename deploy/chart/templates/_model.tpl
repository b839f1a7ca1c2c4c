{{/* Where a process finds a model: a path. Takes the source. */}}
{{- define "offshoot.model.path" -}}
{{- if hasPrefix "pvc://" . -}}
{{- $path := trimPrefix "pvc://" . | splitn "/" 2 -}}
{{- printf "/models/%s" (default "" $path._1) | trimSuffix "/" -}}
{{- else if hasPrefix "oci://" . -}}
{{- $path := splitn "#" 2 . -}}
{{- printf "/models/%s" (default "" $path._1 | trimPrefix "/") | trimSuffix "/" -}}
{{- else if hasPrefix "hf://" . -}}
{{- $name := trimPrefix "hf://" . | splitn "@" 2 -}}
{{- printf "/models/%s" $name._0 -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* The volume of a source, with the name models; empty for a path. Takes a list of the root and the source. */}}
{{- define "offshoot.model.volume" -}}
{{- $root := index . 0 -}}
{{- $source := index . 1 -}}
{{- if hasPrefix "pvc://" $source }}
- name: models
  persistentVolumeClaim: {claimName: {{ (trimPrefix "pvc://" $source | splitn "/" 2)._0 }}, readOnly: true}
{{- else if hasPrefix "oci://" $source }}
- name: models
  image:
    reference: {{ (trimPrefix "oci://" $source | splitn "#" 2)._0 }}
    {{- with $root.Values.image.pullPolicy }}
    pullPolicy: {{ . }}
    {{- end }}
{{- else if hasPrefix "hf://" $source }}
- name: models
  {{- with $root.Values.huggingFace.cache.claim }}
  persistentVolumeClaim: {claimName: {{ . }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $root.Values.huggingFace.cache.size }}}
  {{- end }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end }}
{{- end -}}

{{/* The init container that fetches a model of the hub. Takes the root, the source, and what to leave out or null. */}}
{{- define "offshoot.model.fetch" -}}
{{- $root := index . 0 -}}
{{- $source := index . 1 -}}
{{- $only := index . 2 -}}
{{- if hasPrefix "hf://" $source }}
{{- $name := trimPrefix "hf://" $source | splitn "@" 2 }}
- name: fetch
  image: {{ $root.Values.huggingFace.image }}
  command:
  - hf
  - download
  - {{ $name._0 | quote }}
  {{- with $name._1 }}
  - --revision={{ . }}
  {{- end }}
  - --local-dir={{ include "offshoot.model.path" $source }}
  {{- range $only }}
  - --include={{ . }}
  {{- end }}
  env:
  - {name: HF_HOME, value: /tmp/hf}
  {{- with $root.Values.huggingFace.endpoint }}
  - {name: HF_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  {{- with $root.Values.huggingFace.tokenSecret }}
  - name: HF_TOKEN
    valueFrom:
      secretKeyRef: {name: {{ . }}, key: token}
  {{- end }}
  resources:
    requests: {cpu: 500m, memory: 512Mi}
    limits: {memory: 4Gi}
  volumeMounts:
  - {name: models, mountPath: /models}
  - {name: tmp, mountPath: /tmp}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
{{- end }}
{{- end -}}
