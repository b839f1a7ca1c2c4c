{{- define "offshoot.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains "offshoot" .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-offshoot" (.Release.Name | trunc 36 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{/* Labels by which pods are selected. Takes a list of the root and a role, which may be empty. */}}
{{- define "offshoot.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: offshoot
app.kubernetes.io/instance: {{ $root.Release.Name }}
{{- with index . 1 }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* Labels of objects, of the same list. */}}
{{- define "offshoot.labels" -}}
{{- $root := index . 0 -}}
{{ include "offshoot.selector" . }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name ($root.Chart.Version | replace "+" "_") }}
{{- end -}}

{{/* The roles of workers that there are, as a list in JSON. */}}
{{- define "offshoot.workers" -}}
{{- $roles := list "target" -}}
{{- if .Values.qualifier.enabled }}{{ $roles = append $roles "qualifier" }}{{ end -}}
{{- if .Values.draft.enabled }}{{ $roles = append $roles "draft" }}{{ end -}}
{{- toJson $roles -}}
{{- end -}}

{{/* Seconds between the signal to stop and the end by force. Takes the values of a role. */}}
{{- define "offshoot.grace" -}}
{{- add .stopDelay .drainGrace 15 -}}
{{- end -}}

{{/* The image of a role. Takes a list of the root and the values of the role. */}}
{{- define "offshoot.image" -}}
{{- $root := index . 0 -}}
{{- $own := (index . 1).image -}}
{{- $repository := default $root.Values.image.repository $own.repository -}}
{{- $digest := default (ternary "" $root.Values.image.digest (not (empty (or $own.tag $own.repository)))) $own.digest -}}
{{- if $digest -}}
{{- printf "%s@%s" $repository $digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (coalesce $own.tag $root.Values.image.tag $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
